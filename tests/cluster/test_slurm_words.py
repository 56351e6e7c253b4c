"""What needs no Slurm to be tried: times, states, messages, the copy of the code."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from makers.slurm_work import Work, note

from cluster import slurm, slurm_queue, slurm_watch
from cluster.slurm_job import read_words
from cluster.slurm_queue import Status
from cluster.slurm_watch import Watch, seconds
from cluster.snapshot import snapshot
from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Launch, Slurm


@pytest.mark.parametrize(
    ("text", "expected"),
    {"90": 5400, "1:30": 90, "2:00:05": 7205, "1-00": 86400, "1-12:30": 131400, "1-12:30:15": 131415, "0-00:10:00": 600}.items(),
)
def test_times_are_read_as_slurm_reads_them(text: str, expected: int) -> None:
    assert seconds(text) == expected


def test_a_line_of_scontrol_becomes_a_status() -> None:
    line = (
        "JobId=7 JobName=a JobState=b JobState=PENDING Reason=Resources Restarts=2 ReqNodeList=n9 ExitCode=0:15 NodeList=node[1-2] X=(null)"
    )
    line = line.replace("JobName=a JobState=b", "JobName=a")
    assert slurm_queue.parse(line) == Status("PENDING", "Resources", "node[1-2]", 2, "0:15")
    assert slurm_queue.parse("JobId=7 JobState=RUNNING Reason=None NodeList=(null)") == Status("RUNNING")
    assert not Status("REQUEUED").ended
    assert Status("OUT_OF_MEMORY").ended


def watch(folder: Path, log: str = "") -> Watch:
    (folder / "7_0_log.out").write_text(log)
    return Watch("fcn, seed 0", "7", folder / "7_0_log.out", folder / "words", "uv run python -m stages.train fcn", new=True)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status("OUT_OF_MEMORY", exit="0:125"), "ran out of memory: raise slurm.memory, .* (OUT_OF_MEMORY)"),
        (Status("TIMEOUT", "TimeLimit"), "raise slurm.warning .*(TIMEOUT, TimeLimit)"),
        (Status("NODE_FAIL"), "lost a node"),
        (Status("CANCELLED"), "was cancelled"),
        (Status("GONE"), "unknown to Slurm"),
        (Status("FAILED", "NonZeroExitCode", exit="137:0"), "killed by signal 9 .*(FAILED, NonZeroExitCode)"),
        (Status("FAILED", exit="0:12"), "killed by signal 12"),
        (Status("FAILED", exit="2:0"), "failed with exit status 2"),
    ],
)
def test_an_end_is_told_with_slurms_reason_and_the_logs_end(tmp_path: Path, status: Status, words: str) -> None:
    said = watch(tmp_path, "submitit INFO - noise\n" + "".join(f"line {number}\n" for number in range(40))).why(status)
    first, *tail = said.splitlines()
    for part in words.split(".*"):
        assert part in first
    assert first.startswith("fcn, seed 0: Slurm job 7 ")
    assert tail == [f"  line {number}" for number in range(25, 40)]


def test_the_latest_starts_cause_comes_first(tmp_path: Path) -> None:
    def leave(restart: int, rank: int, kind: str) -> None:
        (tmp_path / f"words.7.{restart}.{rank}.json").write_text(json.dumps({"kind": kind, "line": f"{restart} {rank}", "rank": rank}))

    assert read_words(str(tmp_path / "words"), "7") is None
    leave(0, 0, "told")
    leave(1, 0, "lost")
    leave(1, 1, "broken")
    (tmp_path / "words.77.0.0.json").write_text("{}")
    assert (
        watch(tmp_path).why(Status("FAILED", exit="1:0")).startswith("fcn, seed 0: Slurm job 7 failed: rank 1 met a fault of the code: 1 1")
    )
    leave(1, 3, "told")
    assert watch(tmp_path).why(Status("FAILED", exit="1:0")) == "1 3"


def test_it_waits_through_ends_that_do_not_last_and_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    states = [
        Status("PENDING", "Priority"),
        Status("UNKNOWN", "no answer"),
        Status("NODE_FAIL"),
        Status("PENDING", "BeginTime", restarts=1),
    ]
    monkeypatch.setattr(slurm_queue, "status", lambda job: states.pop(0) if states else Status("COMPLETED"))
    monkeypatch.setattr(slurm_watch, "LOOK", 0.01)
    watch(tmp_path, "from the log\n").follow()
    said = capfd.readouterr().err
    for words in ("PENDING (Priority)", "does not answer", "PENDING (BeginTime), start 2", "COMPLETED", "from the log"):
        assert words in said


@pytest.mark.parametrize("holds", [1, 3, 4])
def test_one_that_a_node_cannot_start_is_released_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, holds: int) -> None:
    states = [Status("PENDING", "launch_failed_requeued_held", restarts=1)] * holds
    released: list[str] = []
    monkeypatch.setattr(slurm_queue, "status", lambda job: states.pop(0) if states else Status("COMPLETED"))
    monkeypatch.setattr(slurm_queue, "release", released.append)
    monkeypatch.setattr(slurm_watch, "LOOK", 0.01)
    if holds == 4:
        with pytest.raises(UserError, match="fcn, seed 0: Slurm job 7 cannot be started and is held, also after 3 releases: `scontrol"):
            watch(tmp_path).follow()
    else:
        watch(tmp_path).follow()
    assert released == ["7"] * min(holds, 3)
    assert "was held: released (1 of 3)" in capfd.readouterr().err


def test_an_interrupt_without_a_terminal_leaves_the_job_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def interrupt(job: str) -> Status:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_queue, "status", interrupt)
    monkeypatch.setattr(slurm_queue, "cancel", lambda job: pytest.fail("it was cancelled"))
    with pytest.raises(KeyboardInterrupt):
        watch(tmp_path).follow()
    assert "attach to it: uv run python -m stages.train fcn; to cancel it: scancel 7" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("answer", "others", "cancelled"), [("y\n", [], ["7"]), ("\n", [], []), ("n\n", ["8"], []), ("yes\n", ["8"], ["7", "8"])]
)
def test_an_interrupt_at_a_terminal_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, answer: str, others: list[str], cancelled: list[str]
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(slurm_queue, "cancel", asked.append)
    followed = watch(tmp_path)
    followed.others = lambda: others
    followed.interrupted()
    assert asked == cancelled
    assert ("Slurm jobs 7, 8 run on. Cancel them?" if others else "Slurm job 7 runs on. Cancel it?") in capfd.readouterr().err


def test_without_slurm_it_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    with pytest.raises(UserError, match=r"^backend slurm: there is no sbatch here: .*LAUNCH=local$"):
        slurm.launch(note, Work(Launch(name="test", backend="slurm", slurm=Slurm()), workspace))


def test_the_copy_has_the_code_whether_or_not_there_is_git(workspace: Path) -> None:
    live = workspace / "live"
    for name in ("pipeline/a.py", "models/heads/mine.py", "mine.py", "tests/t.py", "images/1.png", "pipeline/ignored.log"):
        (live / name).parent.mkdir(parents=True, exist_ok=True)
        (live / name).write_text(name)
    bare = snapshot(live)
    assert names(bare) == ["mine.py", "models/heads/mine.py", "pipeline/a.py", "pipeline/ignored.log"]
    (live / ".gitignore").write_text("*.log\n")
    subprocess.run(["git", "init", "-q"], cwd=live, check=True)
    first = snapshot(live)
    assert names(first) == ["mine.py", "models/heads/mine.py", "pipeline/a.py"]
    began = (first / "pipeline/a.py").stat().st_mtime_ns
    time.sleep(0.01)
    assert snapshot(live) == first
    assert (first / "pipeline/a.py").stat().st_mtime_ns == began
    (live / "pipeline/a.py").write_text("edited")
    second = snapshot(live)
    assert second != first
    assert (first / "pipeline/a.py").read_text() == "pipeline/a.py"
    assert (second / "pipeline/a.py").read_text() == "edited"
    assert not list((workspace / "runs/.code").glob("*.tmp"))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
