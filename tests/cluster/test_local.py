"""Several processes of this machine: the environment they get, and how one that fails ends all."""

import errno
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import local
from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Launch


@dataclass(frozen=True)
class Work:
    launch: Launch
    folder: Path


def work_on(folder: Path, processes: int) -> Work:
    return Work(Launch(name="test", backend="local", processes=processes), folder)


def note(work: Work) -> None:
    text = " ".join(os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"))
    (work.folder / f"{os.environ['RANK']}").write_text(f"{text} {os.getpid()}")


def note_and_wait(work: Work) -> None:
    note(work)
    while True:
        time.sleep(0.1)


def fail_on_rank_1(work: Work) -> None:
    note(work)
    if os.environ["RANK"] == "1":
        raise UserError("rank 1 has its reasons")
    time.sleep(600)


def die_on_rank_1(work: Work) -> None:
    note(work)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def break_on_rank_0(work: Work) -> None:
    note(work)
    if os.environ["RANK"] == "0":
        raise RuntimeError("a fault of the code")
    time.sleep(600)


def lose_rank_1(work: Work) -> None:
    import torch
    import torch.distributed as dist

    record_words(work)
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        CAUSES[(work.folder.parent / "cause").read_text()]()
    dist.all_reduce(torch.ones(3))


def mistake() -> None:
    raise UserError("rank 1 has its reasons")


def memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


def disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "x")


def code() -> None:
    raise RuntimeError("a fault of the code")


def death() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


CAUSES = {cause.__name__: cause for cause in (mistake, memory, disk, code, death)}


def break_as_if_torn(work: Work) -> None:
    record_words(work)
    raise RuntimeError("[/gloo/transport/tcp/pair.cc:545] Connection\nclosed by peer")


def tear_before_the_cause(work: Work) -> None:
    if os.environ["RANK"] == "0":
        break_as_if_torn(work)
    record_words(work)
    time.sleep(1)
    code()


def record_words(work: Work) -> None:
    """Let what this rank says go to a file: the server that ranks are forked from keeps the stderr it was started with."""
    note(work)
    os.dup2(os.open(work.folder.parent / f"said-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT), 2)


def tracebacks(folder: Path) -> list[int]:
    return [path.read_text().count("Traceback") for path in sorted(folder.glob("said-*"))]


def pids(folder: Path) -> list[int]:
    return [int(path.read_text().split()[-1]) for path in folder.iterdir()]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE", 0.5)


def test_each_rank_is_told_who_it_is(tmp_path: Path) -> None:
    local.launch(note, work_on(tmp_path, 3))
    told = sorted(path.read_text().split()[:4] for path in tmp_path.iterdir())
    assert told == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len(set(pids(tmp_path))) == 3
    assert os.getpid() not in pids(tmp_path)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fail_on_rank_1, "^rank 1 has its reasons$"),
        (die_on_rank_1, "rank 1 was killed by SIGKILL .*run it again"),
        (break_on_rank_0, "rank 0 ended with status 1; its traceback is above"),
    ],
)
def test_one_that_fails_ends_all_and_its_reason_is_told(tmp_path: Path, work, message: str) -> None:
    with pytest.raises(UserError, match=message):
        local.launch(work, work_on(tmp_path, 2))
    assert len(pids(tmp_path)) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids(tmp_path))


@pytest.mark.parametrize(
    ("cause", "message", "traces"),
    [
        ("mistake", "^rank 1 has its reasons$", 0),
        ("memory", "^out of GPU memory: .*train.accumulate", 0),
        ("disk", "^cannot read or write x: No space left on device$", 0),
        ("code", "^rank 1 ended with status 1; its traceback is above$", 1),
        ("death", "^rank 1 was killed by SIGKILL", 0),
    ],
)
def test_the_cause_is_told_not_that_others_lost_the_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str, message: str, traces: int
) -> None:
    monkeypatch.setattr(local, "GRACE", 20.0)
    (tmp_path / "cause").write_text(cause)
    (tmp_path / "pids").mkdir()
    with pytest.raises(UserError, match=message):
        local.launch(lose_rank_1, work_on(tmp_path / "pids", 2))
    assert tracebacks(tmp_path) == [0, traces]


def test_a_cause_that_ends_later_still_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE", 20.0)
    (tmp_path / "pids").mkdir()
    with pytest.raises(UserError, match="rank 1 ended with status 1"):
        local.launch(tear_before_the_cause, work_on(tmp_path / "pids", 2))


def test_where_all_lost_one_another_that_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    with pytest.raises(UserError, match=r"^rank \d lost the other ranks: .* Connection closed by peer$"):
        local.launch(break_as_if_torn, work_on(tmp_path / "pids", 2))
    assert tracebacks(tmp_path) == [0, 0]


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(errno.EAGAIN, "no process")])
def test_ranks_end_where_a_later_one_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    class Context:
        def __init__(self) -> None:
            self.inner, self.made = multiprocessing.get_context("forkserver"), 0

        def set_forkserver_preload(self, names: list[str]) -> None:
            pass

        def Pipe(self, duplex: bool):  # noqa: N802
            return self.inner.Pipe(duplex)

        def Process(self, **options):  # noqa: N802
            self.made += 1
            process = self.inner.Process(**options)
            if self.made == 3:
                process.start = self.fail
            return process

        def fail(self) -> None:
            limit = time.monotonic() + 60
            while len(list(tmp_path.iterdir())) < 2:
                assert time.monotonic() < limit
                time.sleep(0.05)
            raise problem

    monkeypatch.setattr(local, "multiprocessing", SimpleNamespace(get_context=lambda kind: Context()))
    with pytest.raises(type(problem)):
        local.launch(note_and_wait, work_on(tmp_path, 3))
    assert len(pids(tmp_path)) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids(tmp_path))


def test_one_process_is_this_one_and_joins_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "9")):
        monkeypatch.setenv(name, value)
    from pipeline.training.distributed import process_group, world

    seen = []

    def join_in(work: Work) -> None:
        assert "WORLD_SIZE" not in os.environ
        with process_group(work.launch) as device:
            seen.append((os.getpid(), device.index, world()))

    local.launch(join_in, work_on(tmp_path, 1))
    assert seen in ([(os.getpid(), None, 1)], [(os.getpid(), 0, 1)])
