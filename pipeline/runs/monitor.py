"""What a running training writes and shows: metrics.jsonl (the record), log.txt, job.json, and a bar or plain lines."""

import contextlib
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from pipeline.ground import files
from pipeline.ground.progress import PLAIN_SECONDS
from pipeline.runs import folders
from pipeline.runs.fingerprint import fingerprint
from pipeline.settings.schema import Config

TIMING = ("seconds", "steps_per_second", "data_wait", "memory_bytes", "seconds_left")  # of the record, not of the curve


class Monitor:
    """One rank's view of its training; only rank 0 (`active`) writes and shows anything.

    `history` holds the record's rows; it travels in the checkpoints, so that a resumed run's record has no gap and no step twice.
    """

    def __init__(self, config: Config, history: list[dict[str, float]], step: int, seconds: float, active: bool) -> None:
        self.config, self.history, self.active = config, history, active
        self.folder, self.total = folders.attempt_folder(config), config.train.iterations
        self.began, self.before, self.first = time.monotonic(), seconds, step
        self.waited, self.said, self.marked = 0.0, time.monotonic(), (step, time.monotonic())
        self.record: TextIO | None = None
        self.log: TextIO | None = None
        self.advance = lambda text: None

    @contextlib.contextmanager
    def running(self) -> Iterator["Monitor"]:
        """Open the files (and a bar in a terminal) for the time of the training."""
        if not self.active:
            yield self
            return
        rows = "".join(json.dumps(row) + "\n" for row in self.history)
        files.write_bytes(self.folder / "metrics.jsonl", rows.encode())
        job = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "fingerprint": fingerprint(self.config),
            "launch": self.config.launch.name,
        }
        files.write_json(self.folder / "job.json", job | {"began": time.strftime("%Y-%m-%d %H:%M:%S"), "from_step": self.first})
        with (self.folder / "metrics.jsonl").open("a") as self.record, (self.folder / "log.txt").open("a") as self.log, self.bar():
            self.say(f"training from step {self.first} to {self.total}")
            yield self

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """A rich bar where stderr is a terminal and the profile wants bars."""
        if not (self.config.launch.bars and sys.stderr.isatty()):
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(self.title, total=self.total, completed=self.first, text="")
            self.advance = lambda text: progress.update(task, completed=self.history[-1]["step"], text=text)
            yield
            progress.update(task, completed=self.total)

    @property
    def title(self) -> str:
        """The run and seed."""
        return f"{self.config.name}, seed {self.config.seed}"

    @property
    def seconds(self) -> float:
        """Training time so far, over all resumes."""
        return self.before + time.monotonic() - self.began

    def due(self, step: int) -> bool:
        """Whether the row of `step` finished steps is recorded."""
        return step % self.config.launch.log_every == 0 or step in (1, self.total)

    def row(self, step: int, rate: float, terms: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
        """Record what step number `step` (from 1) found, `more` beside the loss's terms; returns the row."""
        steps, clock = self.marked
        elapsed = max(time.monotonic() - clock, 1e-9)
        speed = (step - steps) / elapsed
        values = {"step": step, "loss": sum(terms.values()), **terms, "lr": rate, **more}
        timing = {
            "seconds": self.seconds,
            "steps_per_second": speed,
            "data_wait": min(1.0, self.waited / elapsed),
            "memory_bytes": memory(),
            "seconds_left": (self.total - step) / speed,
        }
        self.history.append(values | timing)
        self.marked, self.waited = (step, time.monotonic()), 0.0
        if self.active and self.record is not None:
            self.record.write(json.dumps(values | timing) + "\n")
            self.record.flush()
            self.show(step, values | timing)
        return values | timing

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Move the bar, or say a line now and then."""
        text = (
            f"loss {row['loss']:.4f}, {row['steps_per_second']:.2f} steps/s, data wait {row['data_wait']:.0%}, "
            f"{row['memory_bytes'] / 2**20:.0f} MiB"
        )
        self.advance(text)
        bars = self.config.launch.bars and sys.stderr.isatty()
        if not bars and (time.monotonic() - self.said > PLAIN_SECONDS or step == self.total):
            self.said = time.monotonic()
            self.say(f"step {step}/{self.total}, {text}, {row['seconds_left']:.0f} s left")
        elif self.log is not None:
            self.log.write(f"step {step}/{self.total}, {text}\n")

    def say(self, line: str) -> None:
        """A line for the log, and for stderr where no bar stands."""
        if self.log is not None:
            self.log.write(line + "\n")
            self.log.flush()
        if self.active and not (self.config.launch.bars and sys.stderr.isatty()):
            print(f"{self.title}: {line}", file=sys.stderr, flush=True)


def memory() -> int:
    """The peak memory of this process so far in bytes: the GPU's where there is one, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "cpu"


def curve(history: list[dict[str, float]]) -> bytes:
    """The record as CSV: what DVC plots."""
    columns = [key for key in dict.fromkeys(key for row in history for key in row) if key not in TIMING]
    lines = [",".join(columns), *(",".join(str(row.get(key, "")) for key in columns) for row in history)]
    return ("\n".join(lines) + "\n").encode()


def summary(config: Config, monitor: Monitor, parameters: int, device: torch.device) -> dict[str, Any]:
    """The .json beside published weights."""
    return {
        "name": config.name,
        "seed": config.seed,
        "fingerprint": fingerprint(config),
        "steps": config.train.iterations,
        "seconds": monitor.seconds,
        "peak_memory_bytes": memory(),
        "device": device_name(device),
        "parameters": parameters,
    }
