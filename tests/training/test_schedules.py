"""How a crf is trained: fitted on a frozen unary, jointly in alternating steps, with rates of its own; and what is refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.project import Project
from torch import Tensor

from models.backbones import backbone
from pipeline.data import prepared
from pipeline.ground.errors import UserError
from pipeline.report.composition import origin
from pipeline.settings.config import load
from pipeline.settings.schema import Finetune
from pipeline.training import batches, checkpoint, optim
from pipeline.training.step import Training
from stages.check import check

CONV = {"name": "conv", "filter_size": 3, "blur": 2, "iterations": 2}
UNARY = ["backbone", "head", "projection", "auxiliary", "crf.classifier"]


def add(project: Project, name: str, *, kind: str = "finetunes", crf: dict[str, Any] = CONV, **changes: Any) -> None:
    """A run with the method fcn's head, and its evaluation."""
    start = {"from": "runs/fcn/weights"} if kind == "finetunes" else {}
    project.params[kind][name] = {**project.params["methods"]["fcn"], "crf": dict(crf), **start, **changes}
    project.params["evaluations"][name] = {"of": name}


def state(project: Project, name: str) -> dict[str, Tensor]:
    return checkpoint.read_weights(project.folder / f"runs/{name}/weights/seed-0.pt").state


@pytest.fixture(scope="module")
def with_parent(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose method fcn is trained, to be copied."""
    folder = tmp_path_factory.mktemp("parent") / "project"
    shutil.copytree(prepared_project, folder)
    assert Project(folder).stage("train", "fcn") == 0
    return folder


@pytest.fixture
def child(with_parent: Path, project: Project) -> Project:
    """A project as the current folder, its parent trained."""
    shutil.copytree(with_parent / "runs", project.folder / "runs")
    return project


def test_a_crf_is_fitted_on_a_frozen_unary(child: Project, capfd: pytest.CaptureFixture[str]) -> None:
    crf = CONV | {"compatibility": True, "dropout": 0}
    add(
        child,
        "fit",
        crf=crf,
        freeze=UNARY,
        images=["train-000003", "train-000007"],
        train={"iterations": 5, "multipliers": {"crf.field": 10}},
    )
    assert child.stage("finetune", "fit") == 0
    said = capfd.readouterr().err
    assert "not taken over: crf.field.appearance, crf.field.compatibility, crf.field.smoothness, crf.field.theta_beta" in said
    parent, found = state(child, "fcn"), state(child, "fit")
    assert all(torch.equal(found[name], tensor) for name, tensor in parent.items())
    field = {name: tensor for name, tensor in found.items() if name not in parent}
    assert sorted(field) == sorted(
        f"crf.field.{name}" for name in ("appearance", "compatibility", "smoothness", "theta_beta", "theta_gamma", "weight")
    )
    fresh = Training.start(child.config("fit"), prepared.read().classes, torch.device("cpu")).model.state_dict()
    assert not any(torch.equal(tensor, fresh[name]) for name, tensor in field.items())
    assert child.stage("evaluate", "fit") == 0
    assert json.loads((child.folder / "results/fit.json").read_text())["images"] == 4


def test_a_parents_tensors_of_another_shape_are_named(child: Project, capfd: pytest.CaptureFixture[str]) -> None:
    add(child, "wide", head={"name": "fcn", "width": 24}, train={"iterations": 1})
    assert child.stage("finetune", "wide") == 0
    said = capfd.readouterr().err
    assert "crf.classifier.weight" in said.partition("not taken over: ")[2]
    assert "crf.classifier.bias" not in said


def begin(project: Project, name: str) -> tuple[Training, batches.Batch]:
    """A run before its first step, and its first batch."""
    config, manifest = project.config(name), prepared.read()
    mean, _ = backbone.normalization(config.backbone.name)
    batch = next(batches.train_batches(config, manifest, start=0, rank=0, world=1, mean=mean, pin=False))
    assert isinstance(batch, batches.Batch)
    return Training.start(config, manifest.classes, torch.device("cpu")), batch


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Which parts' learned numbers changed."""
    parts = {name: "field" if ".field." in name else name.partition(".")[0] for name in before if "running" not in name}
    return {part for name, part in parts.items() if before[name].is_floating_point() and not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("crf", [CONV, {"name": "mean_field", "iterations": 2}])
def test_even_steps_leave_the_field_and_its_momentum_alone(child: Project, crf: dict[str, Any], optimizer: str) -> None:
    add(child, "joint", crf=crf, alternate=True, train={"optimizer": optimizer, "warmup": 0, "ema": 0.5})
    training, batch = begin(child, "joint")
    field = [parameter for name, parameter in training.model.named_parameters() if ".field." in name]
    alone = {"auxiliary", "backbone", "crf", "head", "projection"}
    for number in range(4):
        before = copy.deepcopy([training.model.state_dict(), [training.optimizer.state.get(parameter, {}) for parameter in field]])
        terms = training.step(batch, number)
        changed = moved(before[0], training.model.state_dict())
        momentum = [training.optimizer.state.get(parameter, {}) for parameter in field]
        if number % 2:
            assert set(terms) == {"cross_entropy", "auxiliary", "unary"}
            assert changed == {*alone, "field"}
            assert all(momentum)
        else:
            assert set(terms) == {"cross_entropy", "auxiliary"}
            assert changed == alone
            for old, new in zip(before[1], momentum, strict=True):
                assert old.keys() == new.keys()
                assert all(torch.equal(torch.as_tensor(old[key]), torch.as_tensor(new[key])) for key in old)


def test_a_step_of_the_unary_is_that_of_a_network_without_field(child: Project) -> None:
    child.params["methods"]["fcn"]["crf"] = {"name": "unary", "dropout": 0.2}
    add(child, "joint", crf=CONV | {"dropout": 0.2}, alternate=True)
    add(child, "plain", crf={"name": "unary", "dropout": 0.2})
    found = []
    for name in ("joint", "plain"):
        training, batch = begin(child, name)
        terms = training.step(batch, 0)
        found.append((terms, {key: tensor for key, tensor in training.model.state_dict().items() if ".field." not in key}))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][key]) for key, tensor in found[0][1].items())


def test_alternating_is_resumed_to_the_same_bits(child: Project) -> None:
    child.profile["save_every"] = 5  # so that the step that it goes on with is an odd one
    add(child, "joint", alternate=True, train={"iterations": 8, "ema": 0.9, "accumulate": 2})
    assert child.stage("finetune", "joint") == 0
    weights = child.folder / "runs/joint/weights/seed-0.pt"
    expected = weights.read_bytes()
    for path in child.folder.glob("runs/joint/finished/*/seed-0.*"):
        path.unlink()
    assert child.stage("finetune", "joint") == 0
    assert weights.read_bytes() == expected
    header, *rows = (child.folder / "runs/joint/weights/seed-0.csv").read_text().splitlines()
    assert header == "step,loss,cross_entropy,auxiliary,lr,unary"
    assert rows[0].endswith(",")
    assert not rows[-1].endswith(",")


def test_two_processes_alternate_as_one(child: Project) -> None:
    add(child, "joint", crf=CONV | {"dropout": 0}, alternate=True, auxiliary=None, train={"iterations": 4, "lr": 0.02, "warmup": 0})
    found = []
    for processes in (1, 2):
        child.profile["processes"] = processes
        for path in child.folder.glob("runs/joint/*"):
            path.rename(child.folder / f"{path.name}-before")
        assert child.stage("finetune", "joint") == 0
        found.append(state(child, "joint"))
    start = Training.start(child.config("joint"), prepared.read().classes, torch.device("cpu")).model.state_dict()
    for name, one in found[0].items():
        if one.is_floating_point():
            assert (found[1][name] - one).abs().max() <= 0.02 * (one - start[name]).abs().max() + 1e-6, name


@pytest.mark.parametrize("crf", ["conv", "mean_field"])
def test_a_crf_has_rates_of_its_own_and_does_not_decay(project: Project, crf: str) -> None:
    add(project, "crf", kind="methods", crf={"name": crf}, train={"multipliers": {"crf": 10, "crf.classifier": 1, "head": 0.5}})
    training = Training.start(project.config("crf"), prepared.read().classes, torch.device("cpu"))
    optim.set_learning_rate(training.optimizer, 0.1)
    groups = {id(parameter): group for group in training.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in training.model.named_parameters():
        group, inside = groups[id(parameter)], name.startswith("crf.field.")
        rate = 1.0 if inside else 0.05 if name.startswith("head.") else 0.1
        assert group["lr"] == pytest.approx(rate), name
        assert group["weight_decay"] == (0.0 if inside else 0.0005), name
    assert any(name.startswith("crf.field.") for name, _ in training.model.named_parameters())


def test_learned_coordinates_are_evaluated_by_windows_of_their_size(project: Project) -> None:
    add(project, "coordinates", kind="methods", crf=CONV | {"position": [16, 24], "stride": 2}, train={"iterations": 2})
    slide = {"mode": "slide", "window": [32, 48], "stride": [16, 16], "scales": [1.0]}
    for wrong in ({}, slide | {"window": [32, 32]}, slide | {"scales": [1.0, 1.5]}):
        project.params["evaluations"]["coordinates"] = {"of": "coordinates", **wrong}
        with pytest.raises(UserError, match=r"evaluations.coordinates: .* position for 32 x 48 pixels: give it mode: slide, window: \[32"):
            checked(project)
    project.params["evaluations"]["coordinates"] = {"of": "coordinates", **slide}
    assert project.stage("train", "coordinates") == 0
    assert project.stage("evaluate", "coordinates") == 0
    project.params["methods"]["coordinates"]["crf"]["stride"] = 1
    with pytest.raises(UserError, match=r"methods.coordinates.crf.position must be \[32, 48\], .* not \[16, 24\]"):
        checked(project)


def checked(project: Project) -> None:
    project.write()
    check(load(project.folder / "params.yaml"))


REFUSED = {
    "no unary": ({"crf": {"name": "unary"}, "alternate": True}, "alternate: crf unary has no unary of its own"),
    "no unary to train": ({"freeze": UNARY, "alternate": True}, "alternate: all but the crf is frozen"),
    "all frozen": ({"freeze": [*UNARY, "crf"]}, "nothing to train"),
    "a path": ({"images": "held-out.txt"}, "finetunes.wrong.images"),
    "no image": ({"images": []}, "finetunes.wrong.images"),
    "a number": ({"images": ["train-0003", 7]}, "finetunes.wrong.images.1"),
    "a part": ({"freeze": ["crf.fields"]}, "'crf.fields' is no part"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_when_it_is_read(project: Project, case: str) -> None:
    changes, words = REFUSED[case]
    add(project, "wrong", **changes)
    with pytest.raises(UserError) as raised:
        checked(project)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_image_is_named(child: Project, capfd: pytest.CaptureFixture[str]) -> None:
    add(child, "fit", freeze=UNARY, images=["train-3"])
    assert child.stage("finetune", "fit") == 2
    assert "finetunes.fit.images: 'train-3' is no training image of scenes" in capfd.readouterr().err


def test_the_report_says_how_a_finetune_was_trained() -> None:
    finetune = Finetune(source=Path("runs/fcn/weights"), freeze=("backbone", "head"), images=("a", "b"), alternate=True)
    assert origin(finetune) == "from runs/fcn/weights; frozen backbone, head; on 2 images; unary and joint steps in turn"
    assert origin(Finetune(source=Path("x.pt"))) == "from x.pt"
