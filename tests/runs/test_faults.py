"""What stops a training in its midst stops all of it cleanly, and is named."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from makers.project import Project
from makers.trainings import WAIT, wait_for

from pipeline.runs import folders
from pipeline.training import checkpoint


def test_a_second_writer_is_refused_by_name(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.params["train"]["iterations"] = 400
    process = project.start("train", "fcn")
    try:
        wait_for(lambda: (project.folder / "runs/fcn/seed-0/job.json").exists(), "the start")
        assert project.stage("train", "fcn") == 2
        said = capfd.readouterr().err
        assert f"runs/fcn/seed-0 is already being written by process {process.pid}" in said
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_non_finite_loss_stops_before_the_step_and_keeps_the_checkpoint(
    project: Project, processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    project.profile["processes"] = processes
    project.params["train"] |= {"lr": 1e30, "warmup": 0, "clip": None, "iterations": 60}
    project.profile["save_every"] = 1
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert "the loss is not finite" in error
    assert "cross_entropy = " in error
    assert re.search(r"for the images train-\d+", error)
    assert "Traceback" not in said
    found = checkpoint.latest(folders.checkpoint_folder(project.config("fcn")))
    assert found is not None
    assert not (project.folder / "runs/fcn/weights").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_missing_image_stops_all_ranks_and_names_it(project: Project, processes: int, capfd: pytest.CaptureFixture[str]) -> None:
    project.profile["processes"] = processes
    for path in sorted(project.folder.glob("data/store/images/*/*"))[3:]:
        path.unlink()
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert "missing from the store" in said
    assert "python -m stages.prepare" in said
    assert "Traceback" not in said


def test_a_rank_that_stops_prints_no_traceback(project: Project) -> None:
    """In processes of their own, since the fork server that the tests share keeps ranks' words from being captured."""
    project.profile["processes"] = 2
    project.write()
    for path in sorted(project.folder.glob("data/store/images/*/*"))[3:]:
        path.unlink()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "stages.train", "fcn"]
    ended = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert ended.returncode == 2
    assert "error: step 0: image train-" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_superpixel_map_says_how_to_get_it_back(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    for path in project.folder.glob("data/store/superpixels/*/*"):
        path.unlink()
    assert project.stage("train", "ecrf") == 2
    assert "python -m stages.superpixels slic" in capfd.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert "No space left on device" in said
    assert not list(project.folder.glob("runs/**/*.tmp")) + list(project.folder.glob("runs/**/*.pt"))


def test_a_gradient_that_is_not_finite_stops_the_training_without_clipping_too(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.training import step

    real = step.Training.backward

    def broken(self: step.Training, *given: object) -> dict[str, torch.Tensor]:
        terms = real(self, *given)
        next(self.model.parameters()).grad.fill_(float("inf"))
        return terms

    monkeypatch.setattr(step.Training, "backward", broken)
    project.params["train"]["clip"] = None
    assert project.stage("train", "fcn") == 2
    assert "gradient norm = inf" in capfd.readouterr().err
    assert not (project.folder / "runs/fcn/weights").exists()
