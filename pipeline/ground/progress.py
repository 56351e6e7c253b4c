"""Progress: a bar in a terminal, a plain line now and then elsewhere (logs, DVC in a pipe, Slurm)."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PLAIN_SECONDS = 10.0  # between plain lines


def track(items: Iterable[T], total: int | None, what: str, *, done: int = 0, unit: str = "") -> Iterator[T]:
    """Yield `items` while showing how many of `total` (None: unknown) are through, `done` of them before we began."""
    if total is not None and total <= done:
        yield from items
    elif sys.stderr.isatty():
        yield from bar(items, total, what, done)
    else:
        yield from lines(items, total, what, done, unit)


def bar(items: Iterable[T], total: int | None, what: str, done: int) -> Iterator[T]:
    """A rich progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)


def lines(items: Iterable[T], total: int | None, what: str, done: int, unit: str) -> Iterator[T]:
    """A line at the start of slow work, every ten seconds, and at the end."""
    began = said = time.monotonic()
    count, whole = done, f"/{total}" if total is not None else ""
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - said >= PLAIN_SECONDS and count != total:
            said = now
            left = f", {(now - began) / (count - done) * (total - count):.0f} s left" if total is not None else ""
            print(f"{what}: {count}{whole} {unit}{left}", file=sys.stderr, flush=True)
    print(f"{what}: {count}{whole} {unit} in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line for something that a user should know and that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
