"""Variants of one computation, timed in turn in one process, each with its peak memory."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Work = Callable[[], object]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Case:
    """One line of the table. `prepare(device)` builds the inputs and gives the variants by name; the first is ours.

    The other variants are what ours is compared with, such as `literal`: the released algorithm, written out.
    """

    name: str
    target: str  # what is aimed at, in words
    prepare: Callable[[torch.device], Mapping[str, Work]]
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Measured:
    """A variant's median seconds, their spread, and the bytes it took beyond its inputs (None where unknown)."""

    median: float
    low: float
    high: float
    memory: int | None


def measure(case: Case, device: torch.device, rounds: int, seconds: float) -> dict[str, Measured]:
    """Run the variants in turn, `rounds` times or until `seconds` have passed, after one run each that measures memory."""
    torch.manual_seed(0)
    variants = case.prepare(device)
    memory = {name: peak_memory(work, device) for name, work in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    began = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - began > seconds:
            break
        for name, work in variants.items():
            times[name].append(once(work, device))
    return {name: Measured(statistics.median(spent), min(spent), max(spent), memory[name]) for name, spent in times.items()}


def once(work: Work, device: torch.device) -> float:
    """Seconds of one run; on a GPU until it has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Bytes that a run takes beyond what is held before it; a first run warms up."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed is not ours to reuse
    before = resident("VmRSS")
    CLEAR.write_text("5")  # forgets the peak: proc(5)
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
