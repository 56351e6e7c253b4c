"""The helper for several processes reports results, failures and deaths, and never hangs."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from makers.ranks import RankError, run_on_ranks


def rank_and_sum(factor: int) -> tuple[int, float]:
    total = torch.tensor(float(dist.get_rank() + 1) * factor)
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def raise_on_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("broken here")
    dist.barrier()


def die_on_one() -> None:
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def sleep() -> None:
    time.sleep(60)


def test_every_rank_returns_its_result() -> None:
    assert run_on_ranks(rank_and_sum, 2, 10) == [(0, 30.0), (1, 30.0)]


def test_failures_are_told_and_end_the_others() -> None:
    with pytest.raises(RankError, match=r"rank 1 raised(.|\n)*broken here"):
        run_on_ranks(raise_on_one, 2)
    with pytest.raises(RankError, match=r"rank 0 died with exit code -9|rank 1 raised"):
        run_on_ranks(die_on_one, 2)
    with pytest.raises(RankError, match=r"ranks \[0, 1\] did not end"):
        run_on_ranks(sleep, 2, timeout=2)
