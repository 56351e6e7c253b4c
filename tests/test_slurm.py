"""Jobs on a real Slurm: two nodes give what one machine gives, and no preemption, time limit, lost node, edit or kill changes that."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Project

from cluster import slurm, slurm_queue
from pipeline.errors import UserError
from pipeline.profiles import Launch, Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TESTS = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def answering() -> None:
    """A Slurm that answers; without one the tests are skipped, or fail where it must be there."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run(["sinfo"], capture_output=True, timeout=20).returncode == 0:
            return
    reason = "no Slurm answers (bash tests/cluster/slurm-cluster start; source /tmp/slurm-cluster/env.sh)"
    if os.environ.get("REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Jobs find the tests' functions; none is left behind."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(jobs())
    yield
    for job in set(jobs()) - before:
        slurm_queue.cancel(job)


def jobs() -> list[str]:
    return subprocess.run(["squeue", "--me", "-h", "-o", "%F"], capture_output=True, text=True, check=True).stdout.split()


def until(what: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.2)


@dataclass(frozen=True)
class Work:
    launch: Launch
    folder: Path


def work_on(folder: Path, nodes: int = 1, processes: int = 1, **asked: object) -> Work:
    profile = Slurm(**{"gpus": 0, "cpus": 1, "time": "10", "warning": 60, **asked})  # type: ignore[arg-type]
    return Work(Launch(name="test", backend="slurm", nodes=nodes, processes=processes, slurm=profile), folder)


def note(work: Work) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURMD_NODENAME")
    (work.folder / f"rank-{os.environ['RANK']}").write_text(" ".join([*(os.environ[name] for name in names), os.getcwd()]))


def fail_on_rank_1(work: Work) -> None:
    note(work)
    if os.environ["RANK"] == "1":
        raise UserError("rank 1 has its reasons")
    time.sleep(600)


def break_on_rank_1(work: Work) -> None:
    note(work)
    if os.environ["RANK"] == "1":
        raise RuntimeError("a fault of the code")
    time.sleep(600)


def die_on_rank_1(work: Work) -> None:
    note(work)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_each_rank_is_told_who_it_is(workspace: Path) -> None:
    slurm.launch(note, work_on(workspace, 2, 2, gpus=1))
    told = [(workspace / f"rank-{rank}").read_text().split() for rank in range(4)]
    assert told == [[str(rank), str(rank % 2), "4", told[0][4], told[rank][4], str(workspace)] for rank in range(4)]
    assert told[0][4] == told[1][4] != told[2][4] == told[3][4]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fail_on_rank_1, r"^rank 1 has its reasons$"),
        (break_on_rank_1, r"^break_on_rank_1: Slurm job \d+ failed: rank 1 met a fault of the code: RuntimeError: a fault of the code"),
        (die_on_rank_1, r"^die_on_rank_1: Slurm job \d+ failed.*run it again"),
    ],
)
def test_one_that_fails_ends_all_and_its_reason_is_told(workspace: Path, work: Callable[[Work], None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        slurm.launch(work, work_on(workspace, 2))
    assert not jobs()


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (1, {"partition": "nope"}, "sbatch refuses it: invalid partition specified: nope"),
        (1, {"gpus": 9}, "Requested node configuration is not available"),
        (9, {}, "more nodes than the partition has"),
        (1, {"time": "1", "warning": 60}, "slurm.warning 60 s is not shorter than slurm.time 1"),
        (1, {"options": {"no-such-option": 3}}, "sbatch refuses it: .*no-such-option"),
    ],
)
def test_what_cannot_be_is_one_line(workspace: Path, nodes: int, asked: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        slurm.launch(note, work_on(workspace, nodes, **asked))
    assert "\n" not in str(caught.value)
    until(lambda: not jobs(), 30)
