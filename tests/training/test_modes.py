"""Compiled, in half precision, averaged and deterministic: the trainer does in every mode what it does in the plain one."""

import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from makers.networks import CLASSES, METHODS, batch, settings
from makers.project import Project
from makers.ranks import run_on_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.parts import layers
from models.segmenter import build, build_loss
from pipeline.data import prepared
from pipeline.ground.errors import UserError
from pipeline.runs import folders, trainer
from pipeline.settings.schema import Config
from pipeline.training import batches, checkpoint, step
from pipeline.training.batches import Batch
from pipeline.training.step import Training


def weights(project: Project, name: str) -> bytes:
    return (project.folder / f"runs/{name}/weights/seed-0.pt").read_bytes()


def record(project: Project, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (project.folder / f"runs/{name}/seed-0/metrics.jsonl").read_text().splitlines()]


def losses(project: Project, name: str) -> list[float]:
    return [row["loss"] for row in record(project, name)]


def forget(project: Project, name: str) -> None:
    """As if the run had been killed after its last checkpoint."""
    for path in project.folder.glob(f"runs/{name}/finished/*/seed-0.*"):
        path.unlink()


def without_dropout(project: Project) -> None:
    for method in project.params["methods"].values():
        method["crf"]["dropout"] = 0.0


@pytest.fixture
def traced() -> Iterator[Any]:
    """torch.compile without code generation: what it traces runs as it is. Yields torch's counters of graphs and breaks."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.compiler.set_default_backend("aot_eager")
    yield torch._dynamo.utils.counters
    torch.compiler.set_default_backend(None)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fcn", "ecrf"])
def test_a_compiled_training_is_the_plain_one_and_resumes(project: Project, method: str, traced: Any) -> None:
    """With one graph and no break; superpixels differ in number from batch to batch."""
    without_dropout(project)
    assert project.stage("train", method) == 0
    plain, state = losses(project, method), checkpoint.read_weights(project.folder / f"runs/{method}/weights/seed-0.pt").state
    project.params["train"]["compile"] = True
    assert project.stage("train", method) == 0
    assert traced["stats"]["unique_graphs"] == 1
    assert not traced["graph_break"]
    assert losses(project, method) == pytest.approx(plain, rel=1e-5)
    compiled = checkpoint.read_weights(project.folder / f"runs/{method}/weights/seed-0.pt")
    assert compiled.config.train.compile
    assert compiled.state.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(compiled.state[name], tensor, rtol=1e-3, atol=1e-4)
    expected = weights(project, method)
    forget(project, method)
    torch._dynamo.reset()
    assert project.stage("train", method) == 0
    assert weights(project, method) == expected
    assert project.stage("evaluate", method) == 0


def traced_rank(folder: str, config: Config) -> tuple[list[float], int]:
    """Train on this rank as a launcher would, traced; the losses and the number of graphs."""
    import torch._dynamo

    os.chdir(folder)
    torch.compiler.set_default_backend("aot_eager")
    found: list[float] = []
    trainer.train(config, lambda row: found.append(row["loss"]))
    return found, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_two_compiled_processes_learn_what_two_plain_ones_do(project: Project) -> None:
    """In one graph each: were it to break at every batch norm, the parts' shapes would differ, and code generation fails on that."""
    without_dropout(project)
    project.profile |= {"processes": 2, "log_every": 1}
    project.params["train"]["iterations"] = 4
    project.params["methods"]["ecrf"] |= {"backbone": {"name": "test_convnext", "output_stride": 32}, "auxiliary": None}
    found = []
    for compiled in (False, True):
        project.params["train"]["compile"] = compiled
        found.append(run_on_ranks(traced_rank, 2, str(project.folder), project.config("ecrf"), timeout=500.0))
    (plain, _), traced_ranks = found[0][0], found[1]
    assert len(plain) == 4
    for losses_of_rank, graphs in traced_ranks:
        assert losses_of_rank == pytest.approx(plain, rel=1e-5)
        assert graphs == 1


@pytest.mark.slow
def test_generated_code_trains_and_resumes_to_the_same_bits(project: Project) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile on a CPU needs a C++ compiler")
    project.params["train"]["iterations"] = 6
    project.params["methods"]["fcn"] |= {"backbone": {"name": "test_convnext", "output_stride": 32}, "auxiliary": None}
    assert project.stage("train", "fcn") == 0
    plain = losses(project, "fcn")
    project.params["train"]["compile"] = True
    assert project.stage("train", "fcn") == 0
    assert losses(project, "fcn") == pytest.approx(plain, rel=1e-3)  # dropout draws other channels
    expected = weights(project, "fcn")
    forget(project, "fcn")
    torch.compiler.reset()
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected


def test_what_cannot_be_compiled_is_one_line(project: Project, traced: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no working C++ compiler\nfound: deterministic")

    torch.compiler.set_default_backend(broken)
    project.params["train"]["compile"] = True
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert error.startswith("error: train.compile: the network cannot be compiled here")
    assert "no working C++ compiler found" in error
    assert error.endswith("; switch it off")
    assert "Traceback" not in said


def scaler(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, **options))


def test_fp16_skips_what_overflows_records_it_and_resumes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    scaler(monkeypatch, init_scale=2.0**24, growth_interval=2)
    project.params["train"] |= {"precision": "fp16", "iterations": 30, "ema": 0.9}
    project.profile |= {"log_every": 1, "save_every": 9}
    assert project.stage("train", "fcn") == 0
    expected, rows = weights(project, "fcn"), record(project, "fcn")
    for before, after in pairwise(rows):
        assert after["skipped"] - before["skipped"] == (after["scale"] < before["scale"])
    assert 0 < rows[0]["skipped"] + rows[17]["skipped"] < rows[-1]["skipped"] < 30
    assert len({row["scale"] for row in rows}) > 3
    header = (project.folder / "runs/fcn/weights/seed-0.csv").read_text().splitlines()[0]
    assert header.endswith("lr,scale,skipped")
    _, state = checkpoint.latest(folders.checkpoint_folder(project.config("fcn")))
    assert (state["scaler"]["scale"], state["skipped"]) == (rows[26]["scale"], rows[26]["skipped"])
    forget(project, "fcn")
    assert project.stage("train", "fcn") == 0
    assert weights(project, "fcn") == expected
    assert [row["scale"] for row in record(project, "fcn")] == [row["scale"] for row in rows]


def begun(project: Project) -> tuple[Training, Batch]:
    """A training and its first batch."""
    config = project.config("fcn")
    manifest = prepared.read()
    training = Training.start(config, manifest.classes, torch.device("cpu"))
    found = next(batches.train_batches(config, manifest, start=0, rank=0, world=1, mean=(0.5, 0.5, 0.5), pin=False))
    assert isinstance(found, Batch)
    return training, found


def everything(training: Training) -> dict[str, Tensor]:
    state = training.state()
    moments = {f"{index}.{key}": value for index, of in state["optimizer"]["state"].items() for key, value in of.items()}
    tensors = {**state["model"], **{f"averaged.{name}": tensor for name, tensor in state["averaged"].items()}, **moments}
    return {name: tensor.clone() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def test_a_skipped_step_changes_nothing_but_the_scale(project: Project) -> None:
    project.params["train"] |= {"precision": "fp16", "ema": 0.9}
    training, good = begun(project)
    while training.skipped == (number := training.skipped):
        training.step(good, number)
        if training.optimizer.state:
            break
    before, skipped, scale = everything(training), training.skipped, training.scaler.get_scale()
    image = good.image.clone()
    image[0, :, 3, 3] = float("inf")
    terms = training.step(good._replace(image=image), 1)
    assert not all(torch.tensor(list(terms.values())).isfinite())
    assert (training.skipped, training.scaler.get_scale()) == (skipped + 1, scale / 2)
    after = everything(training)
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    training.step(good, 2)
    changed = {name for name, tensor in everything(training).items() if not torch.equal(tensor, before[name])}
    assert {"crf.classifier.weight", "backbone.bn1.running_mean", "averaged.crf.classifier.weight"} <= changed


@pytest.mark.parametrize("processes", [1, 2])
def test_fp16_that_overflows_at_every_scale_stops(
    project: Project, processes: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    project.profile |= {"processes": processes, "save_every": 3}
    project.params["train"] |= {"precision": "fp16", "iterations": 60, "warmup": 0, "lr": 1e30, "clip": None}
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert "fp16 overflows at whatever scale of the loss on rank 0 (cross_entropy = " in said
    assert "Traceback" not in said
    assert list(project.folder.glob("runs/fcn/checkpoints/*/seed-0/step-*.pt"))
    assert not (project.folder / "runs/fcn/weights").exists()


def test_published_weights_are_the_moving_average_with_batch_norms_statistics(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.params["train"] |= {"ema": 0.6, "iterations": 10}
    project.profile["save_every"] = 100
    states: list[dict[str, Tensor]] = []
    real = Training.step

    def watched(self: Training, *arguments: Any) -> dict[str, float]:
        states.extend([step.copied(self.model.state_dict())] * (not states))
        terms = real(self, *arguments)
        states.append(step.copied(self.model.state_dict()))
        return terms

    monkeypatch.setattr(Training, "step", watched)
    assert project.stage("train", "fcn") == 0
    published = checkpoint.read_weights(project.folder / "runs/fcn/weights/seed-0.pt").state
    assert len(states) == 11
    assert published.keys() == states[-1].keys()
    for name, tensor in published.items():
        expected = states[0][name].double()
        for number, state in enumerate(states[1:]):
            decay = min(0.6, (1 + number) / (10 + number)) if tensor.is_floating_point() else 0.0
            expected = decay * expected + (1 - decay) * state[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    moved = {name for name, tensor in published.items() if not torch.equal(tensor, states[-1][name])}
    assert {"backbone.bn1.running_mean", "backbone.bn1.running_var", "crf.classifier.weight"} <= moved
    assert not any("num_batches_tracked" in name for name in moved)


# What torch.use_deterministic_algorithms refuses on CUDA, of its documentation's list.
REFUSED = {
    "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward",
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "max_unpool2d",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "put_", "histc", "bincount",
    "median", "grid_sampler_2d_backward", "_ctc_loss_backward", "_embedding_bag",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """The names of the operations called inside, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def gradients(method: str, config: Any) -> list[Tensor]:
    """Of one step, all in float32."""
    torch.manual_seed(0)
    network = build(config, CLASSES).train()
    images, labels, superpixels = batch()
    terms = build_loss(config, CLASSES)(network(images.float(), superpixels), labels)
    sum(terms.values()).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deterministic mode, in the forms that CUDA takes then."""
    for module in [module for name, module in sys.modules.items() if name.startswith("models")]:
        if getattr(module, "must_be_deterministic", None) is layers.must_be_deterministic and module is not layers:
            monkeypatch.setattr(module, "must_be_deterministic", lambda x: True)
    monkeypatch.setattr(layers, "must_be_deterministic", lambda x: True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_a_deterministic_form_on_cuda(method: str, deterministic: None) -> None:
    config = settings(**METHODS[method])
    with Operations() as seen:
        first = gradients(method, config)
    assert not seen.names & REFUSED
    assert {"convolution_backward", "mm"} <= seen.names
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(method, config), strict=True))


def test_the_plain_forms_would_be_refused() -> None:
    """The list above finds what it is to find."""
    with Operations() as seen:
        gradients("uper", settings(**METHODS["uper"]))
    assert {"upsample_bilinear2d_backward", "_adaptive_avg_pool2d_backward", "nll_loss2d_forward"} <= seen.names & REFUSED


def test_an_operation_without_a_deterministic_form_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation\nmore")

    monkeypatch.setattr("models.losses.cross_entropy.CrossEntropy.__call__", refused)
    project.params["train"]["deterministic"] = True
    try:
        assert project.stage("train", "fcn") == 2
    finally:
        torch.use_deterministic_algorithms(False)
    said = capfd.readouterr().err
    assert "error: train.deterministic: grid_sampler_2d_backward_cuda does not have a deterministic implementation; switch it off" in said
    with pytest.raises(RuntimeError, match="of another kind"), step.mendable():
        raise RuntimeError("of another kind")
    with pytest.raises(UserError, match=r"train\.deterministic"), step.mendable():
        raise RuntimeError("x does not have a deterministic implementation")
