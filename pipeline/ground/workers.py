"""Work on many files in a few light processes, with progress; the processes end with the one that started them."""

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.ground.errors import UserError
from pipeline.ground.lifeline import die_with_parent
from pipeline.ground.progress import track

T = TypeVar("T")
R = TypeVar("R")
FEW = 8  # jobs for which starting processes takes longer than the work
WAITING = 4  # jobs handed out beforehand, per process
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def mapped(work: Callable[[T], R], jobs: Sequence[T], what: str, *, done: int = 0, unit: str = "images") -> Iterator[tuple[T, R]]:
    """Yield (job, work(job)) in the order in which they finish, while showing `what`; `done` of the total were so before.

    `work` is pickled: it and what it imports must be light.
    """
    processes = min(cores(), len(jobs))
    if processes <= 1 or len(jobs) <= FEW:
        finished: Iterator[tuple[T, R]] = ((job, work(job)) for job in jobs)
    else:
        finished = pooled(work, jobs, processes)
    yield from track(finished, done + len(jobs), what, done=done, unit=unit)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pooled(work: Callable[[T], R], jobs: Sequence[T], processes: int) -> Iterator[tuple[T, R]]:
    """The same in a pool of fresh processes, which inherit no lock or thread of this one."""
    context = multiprocessing.get_context("spawn")
    with one_thread_each(), ProcessPoolExecutor(processes, mp_context=context, initializer=begin) as pool:
        left = iter(jobs)
        running = {pool.submit(work, job): job for job in itertools.islice(left, processes * WAITING)}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    yield job, future.result()
                    for following in left:
                        running[pool.submit(work, following)] = following
                        break
        except BrokenProcessPool:
            raise UserError("a worker process died (out of memory?): run it again to go on") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start now compute in one thread: numerical libraries read the environment when they are loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def begin() -> None:
    """What a process does first: it ends with its parent, and leaves an interrupt to it."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
