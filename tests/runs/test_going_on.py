"""A training that was killed or stopped anywhere and is run again gives the same weights, bit for bit."""

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from makers.project import Project
from makers.trainings import WAIT, checkpoints, fresh, record, wait_for, weights

from cluster import launch
from pipeline.ground import stopping
from pipeline.ground.errors import UserError
from pipeline.runs import folders, trainer
from pipeline.settings.schema import Config
from pipeline.training import checkpoint
from pipeline.training.distributed import rank, world


@pytest.mark.parametrize(("processes", "victim"), [(1, "stage"), (2, "stage"), (2, "rank")])
def test_killed_and_run_again_gives_the_same_bits(project: Project, processes: int, victim: str) -> None:
    project.profile["processes"] = processes
    method = "ecrf" if processes == 1 else "fcn"
    project.params["train"]["iterations"] = 60  # a second of work left when the first checkpoint is seen
    assert project.stage("train", method) == 0
    expected, expected_rows = weights(project, method), [row["loss"] for row in record(project, method)]
    fresh(project)

    process = project.start("train", method)
    wait_for(lambda: len(checkpoints(project, method)) >= 1, "a checkpoint")
    family = [process.pid, *ranks_of(process.pid)]
    assert len(family) == (1 if processes == 1 else 3)
    target = family[0] if victim == "stage" else family[-1]
    os.kill(target, signal.SIGKILL)
    process.join(WAIT)
    assert process.exitcode == (-signal.SIGKILL if victim == "stage" else 2)
    wait_for(lambda: not any(map(alive, family)), "the end of all ranks")
    assert not (project.folder / f"runs/{method}/weights").exists(), "it was killed too late for this test to show anything"

    assert project.stage("train", method) == 0
    assert weights(project, method) == expected
    assert [row["loss"] for row in record(project, method)] == expected_rows


def train_and_stop(config: Config) -> None:
    """What a launcher does that is warned once, in one rank, in mid-training."""

    def report(row: Mapping[str, float]) -> None:
        if row["step"] == 6 and rank() == world() - 1:
            stopping.asked.set()

    trainer.train(config, report)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_request_to_stop_saves_first_and_loses_no_step(project: Project, processes: int) -> None:
    """`save_every` would save at 4 and 8 only; the request comes during step 6."""
    project.profile["processes"] = processes
    assert project.stage("train", "fcn") == 0
    expected = weights(project, "fcn")
    fresh(project)
    config = project.config("fcn")
    with contextlib.chdir(project.folder), pytest.raises(UserError, match="fcn, seed 0: stopped after step 6, as asked"):
        launch(train_and_stop, config)
    stopping.asked.clear()
    assert checkpoints(project, "fcn") == [4, 6]
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected
    assert "training from step 6 to 12" in (project.folder / "runs/fcn/seed-0/log.txt").read_text()


def stopped_at_once(config: Config) -> None:
    """The request comes before the first step."""
    stopping.asked.set()
    trainer.train(config)


def test_one_that_is_asked_to_stop_at_every_start_comes_to_an_end(project: Project) -> None:
    project.params["train"]["iterations"] = 4
    project.write()
    config = project.config("fcn")
    for step in range(1, config.train.iterations):
        with contextlib.chdir(project.folder), pytest.raises(UserError, match=f"stopped after step {step}, as asked"):
            launch(stopped_at_once, config)
        stopping.asked.clear()
    assert project.stage("train", "fcn") == 0


def children(parent: int) -> list[int]:
    """The processes that `parent` started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


def ranks_of(stage: int) -> list[int]:
    """The ranks of a stage: its grandchildren, forked by its fork server."""
    return [rank for child in children(stage) for rank in children(child)]


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_truncated_checkpoint_is_passed_over(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fcn") == 0
    expected = weights(project, "fcn")
    folder = folders.checkpoint_folder(project.config("fcn"))
    assert checkpoint.steps(folder) == [4, 8]
    for path in project.folder.glob("runs/fcn/finished/*/seed-0.*"):
        path.unlink()
    newest = folder / "step-8.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    capfd.readouterr()
    assert project.stage("train", "fcn") == 0
    said = capfd.readouterr().err
    assert "step-8.pt is damaged" in said
    assert "from step 4" in said
    assert weights(project, "fcn") == expected


def test_accumulation_and_averaged_weights_resume_too(project: Project) -> None:
    project.params["train"] |= {"accumulate": 2, "ema": 0.9, "optimizer": "adamw", "precision": "bf16"}
    assert project.stage("train", "fcn") == 0
    expected = weights(project, "fcn")
    for path in project.folder.glob("runs/fcn/finished/*/seed-0.*"):
        path.unlink()
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected


OPTIONS = {
    "fp16": {"precision": "fp16"},
    "deterministic": {"deterministic": True},
    "all": {"precision": "bf16", "deterministic": True, "ema": 0.9},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_other_precisions_and_deterministic_mode_train_and_resume(project: Project, option: str) -> None:
    project.params["train"] |= OPTIONS[option]
    assert project.stage("train", "ecrf") == 0
    expected = weights(project, "ecrf")
    for path in project.folder.glob("runs/ecrf/finished/*/seed-0.*"):
        path.unlink()
    assert project.stage("train", "ecrf") == 0
    assert weights(project, "ecrf") == expected
    state = checkpoint.read_weights(project.folder / "runs/ecrf/weights/seed-0.pt").state
    assert all(tensor.isfinite().all() for tensor in state.values())
