"""Operations that torch's counter does not see: element-wise sums, and kernels of our own, declare theirs here.

Twice the multiply-adds, as everywhere. Outside `declared` a declaration costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_open: list[list[int]] = []


def declare(count: int) -> None:
    """Add `count` floating-point operations of a forward pass that torch.utils.flop_counter leaves out."""
    if _open:
        _open[-1].append(count)


@contextmanager
def declared() -> Iterator[list[int]]:
    """The list of what is declared inside."""
    counts: list[int] = []
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.pop()
