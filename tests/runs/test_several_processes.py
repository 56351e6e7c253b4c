"""Several processes learn what one does, and go on to the same bits."""

import pytest
import torch
from makers.project import Project
from makers.trainings import fresh, record, weights

from pipeline.training import checkpoint


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_what_one_does(project: Project, accumulate: int) -> None:
    """The same batches, losses and batch norm; float32 adds in another order, and dropout draws for each rank, so it is off."""
    project.params["train"] |= {"iterations": 3, "warmup": 0, "accumulate": accumulate}
    for method in project.params["methods"].values():
        method["crf"]["dropout"] = 0.0
    assert project.stage("train", "ecrf") == 0
    one = checkpoint.read_weights(project.folder / "runs/ecrf/weights/seed-0.pt").state
    first = record(project, "ecrf")
    fresh(project)
    project.profile["processes"] = 2
    assert project.stage("train", "ecrf") == 0
    two = checkpoint.read_weights(project.folder / "runs/ecrf/weights/seed-0.pt").state
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    for row, expected in zip(record(project, "ecrf"), first, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_three_processes_resume_to_the_same_bits(project: Project) -> None:
    project.profile["processes"] = 3
    project.params["train"] |= {"batch_size": 6, "iterations": 8}
    assert project.stage("train", "fcn") == 0
    expected = weights(project, "fcn")
    for path in project.folder.glob("runs/fcn/finished/*/seed-0.*"):
        path.unlink()
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected
