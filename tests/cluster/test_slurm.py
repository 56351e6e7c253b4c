"""Jobs on a real Slurm: two nodes give what one machine gives, and no preemption, time limit, lost node, edit or kill changes that."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from makers.project import Project
from makers.slurm_work import Work, break_on_rank_1, die_on_rank_1, lose_rank_1, note, sleep_at_first

from cluster import slurm, slurm_queue
from cluster.slurm import Sent
from pipeline.ground.errors import UserError
from pipeline.runs import folders
from pipeline.runs.trainer import train
from pipeline.settings.profiles import Launch, Slurm
from pipeline.training import checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TESTS = Path(__file__).parents[1]


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


def until(what: Callable[[], object], seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.2)


def work_on(folder: Path, nodes: int = 1, processes: int = 1, **asked: object) -> Work:
    profile = Slurm(**{"gpus": 0, "cpus": 1, "time": "10", "warning": 60, **asked})  # type: ignore[arg-type]
    return Work(Launch(name="test", backend="slurm", nodes=nodes, processes=processes, slurm=profile), folder)


def test_each_rank_is_told_who_it_is(workspace: Path) -> None:
    slurm.launch(note, work_on(workspace, 2, 2, gpus=1))
    told = [(workspace / f"rank-{rank}").read_text().split() for rank in range(4)]
    assert told == [[str(rank), str(rank % 2), "4", told[0][4], told[rank][4], str(workspace)] for rank in range(4)]
    assert told[0][4] == told[1][4] != told[2][4] == told[3][4]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (break_on_rank_1, r"^break_on_rank_1: Slurm job \d+ failed: rank 1 met a fault of the code: RuntimeError: a fault of the code"),
        (lose_rank_1, r"^rank 1 is the cause$"),
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
        (9, {}, "would never start it .*: the partition has fewer nodes"),
        (1, {"time": "1", "warning": 60}, "slurm.warning 60 s is not shorter than slurm.time 1"),
        (1, {"options": {"no-such-option": 3}}, "sbatch refuses it: .*no-such-option"),
    ],
)
def test_what_cannot_be_is_one_line(workspace: Path, nodes: int, asked: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        slurm.launch(note, work_on(workspace, nodes, **asked))
    assert "\n" not in str(caught.value)
    until(lambda: not jobs(), 30)


SLURM = {"gpus": 0, "cpus": 1, "time": "10", "warning": 60}


def restarts(job: str) -> int:
    return slurm_queue.status(job).restarts


def recorded(folder: Path) -> str:
    """The job of fcn's seed 0."""
    return json.loads((folder / "runs/fcn/seed-0/slurm.json").read_text())["job"]


def at_step(folder: Path, number: int) -> bool:
    """Whether fcn's latest start has come to a step."""
    record = folder / "runs/fcn/seed-0/metrics.jsonl"
    return record.is_file() and len(record.read_text().splitlines()) >= number // 2


def test_two_nodes_give_what_two_processes_of_one_machine_give(project: Project, two_processes: Project) -> None:
    project.profile |= {"backend": "slurm", "nodes": 2, "processes": 1, "slurm": SLURM}
    assert project.stage("train", "fcn") == 0
    weights = Path("runs/fcn/weights/seed-0.pt")
    assert (project.folder / weights).read_bytes() == (two_processes.folder / weights).read_bytes()


def resume_nodes() -> None:
    """Let nodes work that were set down, or that Slurm drained for it could not start a job on them."""
    names = subprocess.run(["sinfo", "-N", "-h", "-t", "drain,down", "-o", "%N"], capture_output=True, text=True).stdout.split()
    for name in names:
        subprocess.run(["scontrol", "update", f"nodename={name}", "state=resume"], capture_output=True)  # it may be up by itself


def test_preempted_and_bereft_of_its_node_it_goes_on_to_the_same_weights(project: Project) -> None:
    """Two stages wait for one job, which the partition `high` preempts and which then loses its node."""
    resume_nodes()
    project.params["train"]["iterations"] = 400
    assert project.stage("train", "fcn") == 0
    local = torch.load(project.folder / "runs/fcn/weights/seed-0.pt", weights_only=True)
    shutil.rmtree(project.folder / "runs/fcn")
    project.profile |= {"backend": "slurm", "save_every": 10_000, "workers": 1, "slurm": SLURM}
    stages = [project.start("train", "fcn"), project.start("train", "fcn")]
    until(lambda: at_step(project.folder, 20))
    job = recorded(project.folder)
    assert jobs() == [job]
    command = ["sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(command, check=True, capture_output=True)
    until(lambda: restarts(job) == 1)
    saved = checkpoint.steps(next(project.folder.glob("runs/fcn/checkpoints/*/seed-0")))
    assert saved, "Slurm's warning saved no checkpoint"
    until(lambda: slurm_queue.status(job).state == "RUNNING" and at_step(project.folder, saved[-1] + 4))
    node = slurm_queue.status(job).nodes
    scontrol("update", f"nodename={node}", "state=down", "reason=test")
    try:
        until(lambda: restarts(job) >= 2)
    finally:
        resume_nodes()
    for stage in stages:
        stage.join(240)
        assert stage.exitcode == 0
    theirs = torch.load(project.folder / "runs/fcn/weights/seed-0.pt", weights_only=True)
    assert theirs["fingerprint"] == local["fingerprint"]
    for name, value in local["weights"].items():
        assert torch.equal(theirs["weights"][name], value), name


def test_what_cannot_be_resumed_is_queued_again_when_it_is_warned(workspace: Path) -> None:
    task = replace(slurm.describe(sleep_at_first, work_on(workspace, 2)), resumes=False)
    [sent] = slurm.send([task])
    until(lambda: len(list(workspace.glob("starts-*"))) == 2)
    subprocess.run(["scancel", "--signal=USR2", sent.job], check=True)
    until(lambda: restarts(sent.job) == 1)
    until(lambda: slurm_queue.status(sent.job).ended)
    assert slurm_queue.status(sent.job).state == "COMPLETED"
    assert [path.read_text() for path in workspace.glob("starts-*")] == ["xx", "xx"]


def test_the_job_that_is_there_is_found_again(workspace: Path) -> None:
    """Also where whoever submitted it was killed before it could write down the number; other settings are refused."""
    task = replace(slurm.describe(note, work_on(workspace, options={"hold": True})), key="one", record=workspace / "a.json")
    pair = [replace(task, record=workspace / f"{name}.json") for name in "bc"]
    for tasks in ([task], pair):
        sent = slurm.send(tasks)
        assert [each.new for each in sent] == [True] * len(tasks)
        there = [Sent(each.job, new=False) for each in sent]
        assert slurm.send(tasks) == there
        for record in (json.loads(each.record.read_text()) for each in tasks if each.record):
            assert record["job"] in [each.job for each in there]
        for each in tasks:
            assert each.record is not None
            each.record.write_text(json.dumps(json.loads(each.record.read_text()) | {"job": None}))
        assert slurm.send(tasks) == there
        other = slurm.send([replace(tasks[0], key="two"), *tasks[1:]])
        assert f"Slurm job {sent[0].job} (PENDING) runs it with other settings or code: `scancel" in other[0].refusal
        assert other[1:] == there[1:]
    first = json.loads((workspace / "a.json").read_text())["job"]
    slurm_queue.cancel(first)
    until(lambda: slurm_queue.status(first).ended)
    assert slurm.send([task])[0].new


def scontrol(*arguments: str) -> None:
    subprocess.run(["scontrol", *arguments], check=True, capture_output=True)


def test_the_time_limit_queues_it_again_and_scancel_ends_it(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.params["train"]["iterations"] = 50_000
    project.profile |= {"backend": "slurm", "save_every": 10_000, "workers": 1, "slurm": SLURM | {"time": "1", "warning": 45}}
    project.write()
    config = project.config("fcn")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slurm.launch, train, config)
        until(lambda: waiting.done() or (project.folder / "runs/fcn/seed-0/slurm.json").is_file())
        until(lambda: waiting.done() or recorded(project.folder))
        until(lambda: waiting.done() or restarts(recorded(project.folder)) == 1)
        subprocess.run(["scancel", recorded(project.folder)], check=True)
    with pytest.raises(UserError, match=r"^fcn, seed 0: Slurm job \d+ was cancelled.*\(CANCELLED") as caught:
        waiting.result(240)
    assert "stopped after step" in str(caught.value)  # the tail of the log
    assert checkpoint.steps(next(project.folder.glob("runs/fcn/checkpoints/*/seed-0")))
    assert "start 2" in capfd.readouterr().err


def test_a_job_runs_the_code_that_was_submitted_though_its_stage_is_killed(project: Project) -> None:
    """The job is held, the code edited and the stage killed; what the job then makes is of the old code and is collected."""
    for package in ("models", "pipeline", "cluster", "stages"):
        shutil.copytree(TESTS.parent / package, project.folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TESTS.parent / "dvc.yaml", project.folder)
    project.profile |= {"backend": "slurm", "slurm": SLURM | {"options": {"hold": True}}}
    project.write()
    command = [sys.executable, "-m", "stages.train", "fcn"]
    with subprocess.Popen(command, cwd=project.folder) as stage:
        until(lambda: (project.folder / "runs/fcn/seed-0/slurm.json").is_file() and recorded(project.folder))
        stage.kill()
    job, head = recorded(project.folder), project.folder / "models/heads/fcn.py"
    head.write_text("raise RuntimeError('this is the edited code')\n")
    scontrol("release", job)
    until(lambda: slurm_queue.status(job).ended)
    assert folders.is_finished(project.config("fcn"))  # whose fingerprint is of the code before the edit
    assert len(list(project.folder.glob("runs/.code/*"))) == 1


def typed(master: int, words: str) -> str:
    """What a terminal shows until these words have appeared on it."""
    shown = b""
    while words.encode() not in shown:
        assert select.select([master], [], [], 240)[0], shown.decode()
        shown += os.read(master, 4096)
    return shown.decode()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_ctrl_c_at_a_terminal_asks_about_all_seeds(project: Project, answer: str) -> None:
    project.params["train"]["seeds"] = [0, 1]
    project.profile |= {"backend": "slurm", "slurm": SLURM | {"options": {"hold": True}}}
    project.write()
    master, terminal = os.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "stages.train", "fcn"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(command, cwd=project.folder, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as stage:
        typed(master, "PENDING (JobHeldUser)")
        array = recorded(project.folder).split("_")[0]
        os.write(master, b"\x03")
        typed(master, f"Slurm jobs {array}_0, {array}_1 run on. Cancel them? [y/N]")
        os.write(master, f"{answer}\n".encode())
        typed(master, "cancelled Slurm job" if answer == "y" else f"to cancel them: scancel {array}_0 {array}_1")
        assert stage.wait(60) == 130
    if answer == "y":
        until(lambda: not jobs(), 30)
    else:
        assert array in jobs()
    os.close(master)
    os.close(terminal)


def test_all_that_is_stale_is_sent_at_once_and_evaluated(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.params["train"]["seeds"] = [0, 1]
    project.params["methods"].pop("ecrf")
    project.params["finetunes"] = {"later": {**project.params["methods"]["fcn"], "from": "runs/fcn/weights"}}
    project.params["evaluations"] = {"fcn": {"of": "fcn"}, "later": {"of": "later"}}
    assert project.stage("submit") == 2
    assert "launch profile profile has no queue to send to: LAUNCH=slurm" in capfd.readouterr().err
    project.profile |= {"backend": "slurm", "slurm": SLURM}
    assert project.stage("submit") == 0
    said = capfd.readouterr().out
    array = recorded(project.folder).split("_")[0]
    assert f"fcn    seed 0     sent: Slurm job {array}_0" in said
    assert f"fcn    seed 1     sent: Slurm job {array}_1" in said
    assert "later  seed 1     waits for its parent fcn" in said
    assert project.stage("submit") == 0
    assert f"fcn    seed 1     runs already: Slurm job {array}_1" in capfd.readouterr().out
    assert project.stage("train", "fcn") == 0
    assert jobs() == []
    assert project.stage("evaluate", "fcn") == 0
    results = (project.folder / "results/fcn.json").read_bytes()
    assert json.loads(results)["seeds"] == [0, 1]
    shutil.rmtree(project.folder / "results")  # as DVC does when the stage starts
    scripts = len(list(project.folder.glob("runs/.slurm/*_submission.sh")))
    assert project.stage("evaluate", "fcn") == 0
    assert (project.folder / "results/fcn.json").read_bytes() == results
    assert list(project.folder.glob("results/fcn/pictures/*.png"))
    assert len(list(project.folder.glob("runs/.slurm/*_submission.sh"))) == scripts
