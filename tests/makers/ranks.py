"""Run a function on several gloo processes of this machine, and get what each rank returns."""

import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

# One server imports the heavy libraries; the ranks are forked from it, in milliseconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "timm"])


class RankError(RuntimeError):
    """A rank raised, died or ran out of time."""


def run_on_ranks(function: Callable[..., Any], world: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """`[function(*args) on rank 0, ...]`. Each process has its own environment and belongs to a gloo group.

    function: importable (top level of a module); arguments and results are pickled.
    timeout: seconds for all; the first rank that fails ends the others.
    """
    port = free_port()
    work = pickle.dumps((function, args))
    ranks: dict[Connection, tuple[int, Any]] = {}
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    try:
        for rank in range(world):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_rank, args=(theirs, rank, world, port, work), daemon=True)
            process.start()
            theirs.close()
            ranks[ours] = rank, process
        waiting = list(ranks)
        while waiting:
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RankError(f"ranks {sorted(ranks[pipe][0] for pipe in waiting)} did not end within {timeout} s")
            for pipe in ready:
                results[ranks[pipe][0]] = _result(pipe, *ranks[pipe])
                waiting.remove(pipe)
    finally:
        for pipe, (_, process) in ranks.items():
            process.join(5 if len(results) == world else 0)
            process.kill()
            process.join()
            process.close()
            pipe.close()
    return [results[rank] for rank in range(world)]


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _result(pipe: Connection, rank: int, process: Any) -> Any:
    """What a rank sent; its failure is raised here with its own text."""
    try:
        good, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join(5)
        raise RankError(f"rank {rank} died with exit code {process.exitcode}") from None
    if not good:
        raise RankError(f"rank {rank} raised\n{value}")
    return value


def _rank(pipe: Connection, rank: int, world: int, port: int, work: bytes) -> None:
    """One process: joins the group, calls the function, sends its result as plain bytes (not as shared memory)."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        function, args = pickle.loads(work)
        dist.init_process_group("gloo")
        sent = pickle.dumps((True, function(*args)))
        dist.destroy_process_group()
    except BaseException:
        sent = pickle.dumps((False, traceback.format_exc()))
    pipe.send_bytes(sent)
    pipe.close()
