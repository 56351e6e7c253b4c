"""Work for jobs on Slurm, in a file that is quick to import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Launch


@dataclass(frozen=True)
class Work:
    launch: Launch
    folder: Path


def note(work: Work) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURMD_NODENAME")
    (work.folder / f"rank-{os.environ['RANK']}").write_text(" ".join([*(os.environ[name] for name in names), os.getcwd()]))


def fail_on_rank_1(work: Work) -> None:
    if os.environ["RANK"] == "1":
        raise UserError("rank 1 has its reasons")
    time.sleep(600)


def break_on_rank_1(work: Work) -> None:
    if os.environ["RANK"] == "1":
        raise RuntimeError("a fault of the code")
    time.sleep(600)


def die_on_rank_1(work: Work) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def lose_rank_1(work: Work) -> None:
    if os.environ["RANK"] == "1":
        time.sleep(3)
        raise UserError("rank 1 is the cause")
    raise RuntimeError("[/gloo/transport/tcp/pair.cc:545] Connection closed by peer")


def sleep_at_first(work: Work) -> None:
    starts = work.folder / f"starts-{os.environ['RANK']}"
    before = starts.read_text() if starts.is_file() else ""
    starts.write_text(f"{before}x")
    if not before:
        time.sleep(600)
