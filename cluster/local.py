"""This machine: one process for each device. A failing rank ends all of them, and all end with the process that started them."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cluster import C
from pipeline.ground.errors import UserError, words
from pipeline.ground.lifeline import die_with_parent

GRACE = 10.0  # seconds that the other ranks get to end by themselves
GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TOLD, LOST = 2, 3  # how a rank ends that sent its reason, or that only lost another one


def launch(work: Callable[[C], None], config: C) -> None:
    """Run `work(config)` on the profile's number of processes and wait for it.

    One process means this one, so that breakpoints work. Raises UserError with a rank's own words, or with how it died.
    """
    processes = config.launch.processes
    if processes == 1:
        for name in GROUP:  # left over from whatever started us: nobody else is going to join
            os.environ.pop(name, None)
        work(config)
        return
    refuse_too_many(processes)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.runs.trainer", "pipeline.evaluation.evaluate", "timm"])
    port = free_port()
    ranks: list[tuple[BaseProcess, Connection]] = []
    try:
        for rank in range(processes):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=start, args=(work, config, rank, processes, port, writer), name=f"rank {rank}")
            ranks.append((process, reader))
            process.start()
            writer.close()
        join(ranks)
    finally:
        for process, _ in ranks:
            if process.pid is not None:  # it was started
                process.kill()
                process.join()


def start(work: Callable[[C], None], config: C, rank: int, world: int, port: int, reason: Connection) -> None:
    """A rank's life."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    group = dict(zip(GROUP, (rank, rank, world, "127.0.0.1", port), strict=True))
    os.environ.update({name: str(value) for name, value in group.items()})
    try:
        work(config)
    except Exception as error:
        lost = is_loss(error)
        if (line := " ".join(str(error).split()) if lost else words(error)) is None:
            raise
        reason.send(line)
        raise SystemExit(LOST if lost else TOLD) from None


def is_loss(error: Exception) -> bool:
    """Whether a rank fails because another one is gone, or the network to it: known by torch's names and texts alone."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in ("gloo/transport", "Connection closed by peer", "NCCL"))


def join(ranks: list[tuple[BaseProcess, Connection]]) -> None:
    """Wait until all ranks have ended well, or one has not: then the others get a moment and the first one's reason is raised."""
    running = {process.sentinel: (process, reader) for process, reader in ranks}
    failed: list[tuple[BaseProcess, Connection]] = []
    while running:
        ended = wait(list(running), timeout=GRACE if failed else None)
        if not ended:
            break
        for sentinel in ended:
            process, reader = running.pop(int(sentinel))  # type: ignore[arg-type]
            process.join()
            if process.exitcode:
                failed.append((process, reader))
    if failed:
        raise UserError(how_it_ended(*min(failed, key=weight)))


def weight(rank: tuple[BaseProcess, Connection]) -> int:
    """The order of reasons: a rank's own words, a death by a signal, a traceback, and last that others were lost."""
    code = rank[0].exitcode or 0
    return 0 if code == TOLD else 1 if code < 0 else 3 if code == LOST else 2


def how_it_ended(process: BaseProcess, reader: Connection) -> str:
    """The message that a rank sent before it ended, or how it died."""
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        cause = " (out of memory?)" if name == "SIGKILL" else ""
        return f"{process.name} was killed by {name}{cause}; run it again and it goes on from the last checkpoint"
    try:
        said = reader.recv() if reader.poll() else ""
    except EOFError:
        said = ""
    if said:
        return said if code == TOLD else f"{process.name} lost the other ranks: {said}"
    return f"{process.name} ended with status {code}; its traceback is above"


def refuse_too_many(processes: int) -> None:
    """With GPUs, a process for each of them and no more."""
    import torch

    found = torch.cuda.device_count()
    if found and processes > found:
        raise UserError(f"the launch profile asks for {processes} processes, one for each GPU, but this machine has {found}")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
