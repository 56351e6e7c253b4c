"""What a training publishes, and which changes train again."""

import json

import pytest
import torch
from makers.project import Project
from makers.trainings import record, weights

from pipeline.runs import fingerprint, folders
from pipeline.training import checkpoint


def test_training_publishes_weights_a_record_and_a_curve(project: Project) -> None:
    assert project.stage("train", "fcn") == 0
    folder = project.folder / "runs/fcn/weights"
    assert sorted(path.name for path in folder.iterdir()) == ["seed-0.csv", "seed-0.json", "seed-0.pt"]
    found = checkpoint.read_weights(folder / "seed-0.pt")
    assert found.config.head.name == "fcn"
    assert len(found.classes) == found.state["crf.classifier.weight"].shape[0]
    rows = record(project, "fcn")
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8, 10, 12]
    assert (folder / "seed-0.csv").read_text().splitlines()[0].startswith("step,loss,cross_entropy,auxiliary,lr")
    assert json.loads((folder / "seed-0.json").read_text())["steps"] == 12


def test_deleting_checkpoints_retrains_nothing_and_a_b_a_finds_a(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fcn") == 0
    first = weights(project, "fcn")
    for path in project.folder.glob("runs/fcn/checkpoints/**/*.pt"):
        path.unlink()
    assert project.stage("train", "fcn") == 0
    assert "finished before" in capfd.readouterr().out

    project.params["train"]["lr"] = 0.02
    assert project.stage("train", "fcn") == 0
    said = capfd.readouterr()
    assert "finished before" not in said.out
    assert "train.lr 0.01 -> 0.02" in said.err
    second = weights(project, "fcn")
    assert second != first

    project.params["train"]["lr"] = 0.01
    assert project.stage("train", "fcn") == 0
    assert "finished before" in capfd.readouterr().out
    assert weights(project, "fcn") == first


def test_another_seed_trains_that_seed_only(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fcn") == 0
    first = weights(project, "fcn")
    project.params["train"]["seeds"] = [0, 3]
    capfd.readouterr()
    assert project.stage("train", "fcn") == 0
    said = capfd.readouterr()
    assert "seed 0: finished before" in said.out
    assert "seed 3: training from step 0" in said.err
    assert "seed 0: training" not in said.err
    assert weights(project, "fcn") == first != weights(project, "fcn", 3)


def test_edited_code_is_not_passed_off_as_trained(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert project.stage("train", "fcn") == 0
    before = fingerprint.fingerprint(project.config("fcn"))
    real = fingerprint.tree_hash
    monkeypatch.setattr(fingerprint, "tree_hash", lambda path: "edited" if path.name == "fcn.py" else real(path))
    config = project.config("fcn")
    assert fingerprint.fingerprint(config) != before
    assert not folders.is_finished(config)

    monkeypatch.setenv("RESUME_ACROSS_CODE", "1")
    capfd.readouterr()
    assert project.stage("train", "fcn") == 0
    said = capfd.readouterr()
    assert "takes over" in said.err
    assert "code.models/heads/fcn.py changed" in said.err
    recorded = json.loads((folders.finished_folder(config) / "settings.json").read_text())
    assert recorded["settings"]["inputs"]["code"]["models/heads/fcn.py"] == "edited"
    assert recorded["adopted"]["fingerprint"] == before

    monkeypatch.delenv("RESUME_ACROSS_CODE")
    monkeypatch.setattr(fingerprint, "tree_hash", lambda path: "edited again" if path.name == "fcn.py" else real(path))
    assert project.stage("train", "fcn") == 0
    assert "training from step 0" in capfd.readouterr().err


def test_other_data_is_other_weights(project: Project) -> None:
    before = fingerprint.fingerprint(project.config("fcn"))
    manifest = project.folder / "data/prepared.json"
    manifest.write_text(manifest.read_text().replace("val_0", "val-0") + " ")
    assert fingerprint.fingerprint(project.config("fcn")) != before


def test_a_finetune_starts_from_its_parent_and_depends_on_it(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    method = project.params["methods"]["fcn"]
    project.params["finetunes"] = {"more": {**method, "from": "runs/fcn/weights", "freeze": ["backbone"], "train": {"iterations": 3}}}
    project.params["evaluations"]["more"] = {"of": "more"}
    assert project.stage("finetune", "more") == 2
    assert "train its parent first" in capfd.readouterr().err
    assert project.stage("train", "fcn") == 0
    parent = checkpoint.read_weights(project.folder / "runs/fcn/weights/seed-0.pt").state
    assert project.stage("finetune", "more") == 0
    child = checkpoint.read_weights(project.folder / "runs/more/weights/seed-0.pt").state
    for name, tensor in parent.items():
        assert torch.equal(tensor, child[name]) == name.startswith("backbone."), name

    before = fingerprint.fingerprint(project.config("more"))
    project.params["train"]["lr"] = 0.02
    project.params["finetunes"]["more"]["train"]["lr"] = 0.01
    assert project.stage("train", "fcn") == 0
    assert fingerprint.fingerprint(project.config("more")) != before


def test_the_plan_and_the_sanity_check_write_nothing(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fcn", "--dry-run") == 0
    said = capfd.readouterr().out
    assert "12 of 4 images: 4.8 epochs" in said
    assert "would train from the start" in said
    project.params["train"] |= {"iterations": 60, "lr": 0.05}
    assert project.stage("train", "fcn", "--overfit-one-batch") == 0
    assert "can learn" in capfd.readouterr().out
    assert not (project.folder / "runs").exists()
