"""Kill it anywhere, run it again: the same weights, bit for bit. And what stops a training stops it cleanly."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from makers.project import Project

from cluster import launch
from pipeline.ground import stopping
from pipeline.ground.errors import UserError
from pipeline.runs import fingerprint, trainer
from pipeline.runs import folders as runs
from pipeline.settings.schema import Config
from pipeline.training import checkpoint
from pipeline.training.distributed import rank, world

WAIT = 120.0


def wait_for(condition, what: str) -> None:
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.01)


def weights(project: Project, name: str, seed: int = 0) -> bytes:
    return (project.folder / "runs" / name / "weights" / f"seed-{seed}.pt").read_bytes()


def checkpoints(project: Project, name: str) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in project.folder.glob(f"runs/{name}/checkpoints/*/seed-0/step-*.pt"))


def record(project: Project, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (project.folder / f"runs/{name}/seed-0/metrics.jsonl").read_text().splitlines()]


def fresh(project: Project) -> None:
    for path in project.folder.glob("runs/*"):
        path.rename(project.folder / f"{path.name}.before")


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
    folder = runs.checkpoint_folder(project.config("fcn"))
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
    assert not runs.is_finished(config)

    monkeypatch.setenv("RESUME_ACROSS_CODE", "1")
    capfd.readouterr()
    assert project.stage("train", "fcn") == 0
    said = capfd.readouterr()
    assert "takes over" in said.err
    assert "code.models/heads/fcn.py changed" in said.err
    recorded = json.loads((runs.finished_folder(config) / "settings.json").read_text())
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
    found = checkpoint.latest(runs.checkpoint_folder(project.config("fcn")))
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


def test_accumulation_and_averaged_weights_resume_too(project: Project) -> None:
    project.params["train"] |= {"accumulate": 2, "ema": 0.9, "optimizer": "adamw", "precision": "bf16"}
    assert project.stage("train", "fcn") == 0
    expected = weights(project, "fcn")
    for path in project.folder.glob("runs/fcn/finished/*/seed-0.*"):
        path.unlink()
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected


def test_the_plan_and_the_sanity_check_write_nothing(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fcn", "--dry-run") == 0
    said = capfd.readouterr().out
    assert "12 of 4 images: 4.8 epochs" in said
    assert "would train from the start" in said
    project.params["train"] |= {"iterations": 60, "lr": 0.05}
    assert project.stage("train", "fcn", "--overfit-one-batch") == 0
    assert "can learn" in capfd.readouterr().out
    assert not (project.folder / "runs").exists()


def test_unknown_names_say_what_is_known(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fnc") == 2
    assert "did you mean fcn" in capfd.readouterr().err


MISTAKES = {
    "head": ({"head": {"name": "fnc"}}, "methods.ecrf.head: 'fnc' is no head; did you mean fcn; known: "),
    "option": ({"head": {"name": "fcn", "widht": 3}}, "methods.ecrf.head.widht is unknown"),
    "value": ({"head": {"name": "fcn", "width": "wide"}}, "methods.ecrf.head.width"),
    "combination": ({"superpixels": "none"}, "averages over superpixels"),
    "backbone": ({"backbone": {"name": "resnet19"}}, "resnet19"),
    "part": ({"train": {"multipliers": {"haed": 10}}}, "'haed' is no part"),
    "batch of one": ({"train": {"batch_size": 1}}, "batch of 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_last_method_stops_the_first(project: Project, mistake: str, capfd: pytest.CaptureFixture[str]) -> None:
    change, words = MISTAKES[mistake]
    project.params["methods"]["ecrf"] |= change
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (project.folder / "runs").exists()


def test_one_image_of_one_pixel_cannot_be_normalised(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.params["data"]["crop"], project.params["train"]["batch_size"] = [16, 16], 1
    assert project.stage("train", "fcn") == 2
    said = "data.crop [16, 16] is one pixel at the backbone's stride 16, which a batch of 1 cannot normalise"
    assert f"methods.fcn: {said}" in capfd.readouterr().err
    del project.params["methods"]["ecrf"], project.params["evaluations"]["ecrf"]
    project.params["train"]["iterations"], project.params["train"]["warmup"] = 1, 0
    project.params["data"]["crop"] = [16, 17]
    assert project.stage("train", "fcn") == 0


def test_weights_that_are_none_are_refused(workspace: Path) -> None:
    for content in (b"", b"not weights", b"PK\x03\x04"):
        Path("x.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.pt is no weights file"):
            checkpoint.read_weights(Path("x.pt"))


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


def test_three_processes_resume_to_the_same_bits(project: Project) -> None:
    project.profile["processes"] = 3
    project.params["train"] |= {"batch_size": 6, "iterations": 8}
    assert project.stage("train", "fcn") == 0
    expected = weights(project, "fcn")
    for path in project.folder.glob("runs/fcn/finished/*/seed-0.*"):
        path.unlink()
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected


def test_data_that_changed_since_the_start_is_refused(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    from pipeline.runs import trainer

    config = project.config("fcn")
    manifest = project.folder / "data/prepared.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match="has changed since this was started"):
        trainer.train(config)
    assert not runs.is_finished(config)


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


def test_data_of_another_dataset_is_refused(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = project.folder / "data/prepared.json"
    manifest.write_text(manifest.read_text().replace('"dataset": "scenes"', '"dataset": "camvid"'))
    for stage in ("train", "evaluate"):
        assert project.stage(stage, "fcn") == 2
        assert "data.dataset is scenes, but data/prepared.json is of camvid" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": {"pretrained": "typo.pth"}}, "typo.pth does not exist"),
        ({"loss": {"name": "cross_entropy", "unary_weight": -1}}, "unary_weight"),
        ({"head": {"name": "deeplab", "decoder": "false"}}, "methods.ecrf.head.decoder: must be False as YAML writes it, not 'false'"),
        ({"head": {"name": "deeplab", "width": 16.0}}, "methods.ecrf.head.width"),
        ({"superpixels": {"algorithm": "slic"}}, "is no superpixel set"),
    ],
)
def test_values_that_the_code_would_refuse_later_are_refused_first(
    project: Project, change: dict, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    project.params["methods"]["ecrf"] |= change
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said
