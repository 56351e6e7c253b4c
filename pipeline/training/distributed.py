"""The process group, however the processes were started, and what ranks must agree on."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Launch

T = TypeVar("T")


def rank() -> int:
    """This process's number; 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(launch: Launch) -> Iterator[torch.device]:
    """Join the group that the launcher described in the environment and yield this rank's device.

    A single process needs no group. Ray joins before it calls us; the group is then Ray's to leave.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(launch.threads or max(1, cores() // launch.processes))
    ours = processes > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield device
    except UserError:  # all ranks have agreed on it
        leave(ours)
        raise
    leave(ours)  # not after any other exception: the others may wait in a collective, and leaving would wait for them


def leave(ours: bool) -> None:
    """End a group that is ours to end."""
    if ours:
        dist.destroy_process_group()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def agree(fault: str | None) -> str | None:
    """The first fault that any rank has, on all ranks; every rank must call this equally often."""
    return verdict(fault, stop=False)[0]


def verdict(fault: str | None, *, stop: bool) -> tuple[str | None, bool]:
    """`agree`, and whether any rank wants to stop.

    It runs over the CPU's backend, so that a GPU's queue is not waited for.
    """
    if world() == 1:
        return fault, stop
    flags = torch.tensor([fault is not None, stop], dtype=torch.int32)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    failed, stop = flags.bool().tolist()
    if not failed:
        return None, stop
    faults: list[str | None] = [None] * world()
    dist.all_gather_object(faults, fault)
    return next(entry for entry in faults if entry is not None), stop


def of_rank_0(value: T) -> T:
    """Rank 0's value on all ranks: what it sees on the disk, another node may see a moment later."""
    if world() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def on_rank_0(action: Callable[[], object]) -> None:
    """Let rank 0 do what only one may do; all ranks wait for it and share its UserError."""
    fault = None
    if rank() == 0:
        try:
            action()
        except UserError as error:
            fault = str(error)
    if fault := agree(fault):
        raise UserError(fault)


def mean_over_ranks(values: list[float]) -> list[float]:
    """Each value's mean over the ranks, for records."""
    if world() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / world()).tolist()
