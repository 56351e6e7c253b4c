"""Exported files: they compute what the network computes, at other sizes too, and load where they should."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Project
from PIL import Image
from torch import Tensor, nn

from models.portable import FORMS, Portable
from models.segmenter import build
from pipeline import card, config, export, graph, prepared, registry, released, store
from pipeline.checkpoint import read_weights
from pipeline.errors import UserError
from pipeline.graph import Check
from pipeline.predictor import Predictor
from pipeline.served import Served

HERE = Path(__file__).parents[1]


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained project as the current folder."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return trained


@pytest.fixture
def run(project: Path) -> Callable[..., int]:
    """What `python -m stages.export` does."""
    made = Project(project)
    made.params["train"]["iterations"] = 4
    return lambda *arguments: made.stage("export", *map(str, arguments))


def methods() -> dict[str, Any]:
    """The default methods, and others whose parts have plain forms of their own."""
    return dict(config.load(HERE / "params.yaml").methods)


@pytest.mark.parametrize("name", list(methods()))
@torch.no_grad()
def test_plain_forms_compute_what_the_default_methods_compute(name: str) -> None:
    """With weights away from their start: batch norms, crfs and flows that do something."""
    torch.manual_seed(0)
    chosen = methods()[name]
    model = shaken(build(chosen, 5))
    plain = Portable(model)
    reference = graph.original(model)
    for size in ((64, 96), (50, 75), (33, 120)):
        image = smooth(2, *size)
        superpixels = (torch.arange(size[0])[:, None] // 7 * 20 + torch.arange(size[1]) // 9 - 5).expand(2, *size)
        inputs = (image, superpixels) if chosen.superpixel_set else (image,)
        wanted = torch.from_numpy(reference(inputs))
        assert wanted.std() > 0.01
        torch.testing.assert_close(plain(*inputs), wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)


def shaken(model: nn.Module) -> Any:
    """The network in eval mode, with random weights everywhere and none that is tiny."""
    for parameter in model.parameters():
        parameter += 0.1 * parameter.std(correction=0).clamp(min=0.05) * torch.randn_like(parameter)
    for name, values in model.named_buffers():
        if name.endswith("running_mean"):
            values += 0.1 * torch.randn_like(values)
    return model.eval()


def smooth(batch: int, height: int, width: int) -> Tensor:
    coarse = torch.rand(batch, 3, height // 8 + 1, width // 8 + 1)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


OTHERS = {
    "pair": {"crf": {"name": "embedded", "compatibility": "pair", "normalization": "absolute", "centre": False}},
    "count": {"crf": {"name": "embedded", "normalization": "count", "superpixel_weight": 0}},
    "class": {"crf": {"name": "mean_field", "weights": "class", "normalization": "symmetric", "learn_bandwidths": True}},
    "conv": {
        "crf": {"name": "conv", "filter_size": 5, "blur": 1, "stride": 4, "start": "logits", "compatibility": True, "theta_alpha": 9.0}
    },
    "attention": {"head": {"name": "attention", "width": 16, "key_width": 8}},
    "full": {"head": {"name": "caa", "width": 16, "key_width": 8, "output_width": 16, "attention": "full"}},
    "psp": {"head": {"name": "psp", "width": 16}},
    "unshared": {"head": {"name": "ksac", "width": 16, "rates": [1, 3], "shared": False}},
}


@pytest.mark.parametrize("name", list(OTHERS))
@torch.no_grad()
def test_plain_forms_of_other_options(name: str) -> None:
    torch.manual_seed(0)
    project = Project(Path())
    entry = {"head": {"name": "fcn", "width": 16}, "crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "slic"}
    project.params["methods"] = {"one": {**entry, **OTHERS[name]}}
    chosen = parsed(project.params)
    model = shaken(build(chosen, 5))
    image = smooth(2, 50, 75)
    superpixels = torch.randint(-1, 40, (2, 6, 9)).repeat_interleave(9, 1).repeat_interleave(9, 2)[:, :50, :75]
    wanted = torch.from_numpy(graph.original(model)((image, superpixels)))
    torch.testing.assert_close(Portable(model)(image, superpixels), wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)


def parsed(params: dict[str, Any]) -> Any:
    """The config of the method `one`."""
    import tempfile

    import yaml

    params = {**params, "finetunes": {}, "evaluations": {"one": {"of": "one"}}, "launch": "local"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        file.write_text(yaml.safe_dump(params))
        return config.load(file).methods["one"]


def test_every_plain_form_is_tried() -> None:
    """The two tests above between them meet each entry of the table."""
    met: set[type] = set()
    for chosen in methods().values():
        with torch.device("meta"):
            met |= {type(module) for module in build(chosen, 5).modules()}
    for name in OTHERS:
        project = Project(Path())
        entry = {"head": {"name": "fcn", "width": 16}, "crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "slic"}
        project.params["methods"] = {"one": {**entry, **OTHERS[name]}}
        with torch.device("meta"):
            met |= {type(module) for module in build(parsed(project.params), 5).modules()}
    assert set(FORMS) <= met


def test_export_writes_checked_files_that_run_alone(run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX by onnxruntime and .pt2 by torch, on a size, a batch and superpixels that no check had."""
    pytest.importorskip("onnxruntime")
    assert run("--run", "ecrf", "--out", tmp_path / "out") == 0
    said = capfd.readouterr().out
    assert "model.onnx: largest difference of logits" in said
    assert "equal labels at 100.00 % of pixels" in said
    assert "any batch, height and width" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors",
    ]  # fmt: skip
    model = Predictor.load("ecrf", device="cpu").network.model
    torch.manual_seed(1)
    for batch, height, width in ((1, 40, 60), (3, 57, 83)):
        superpixels = torch.arange(height * width).view(1, height, width).expand(batch, -1, -1) // 50 * 977 - 3000
        inputs = (smooth(batch, height, width), superpixels.contiguous())
        wanted = graph.original(model)(inputs)
        for runner in (graph.onnx_runner(tmp_path / "out/model.onnx"), graph.torch_runner(tmp_path / "out/model.pt2")):
            np.testing.assert_allclose(runner(inputs), wanted, atol=1e-3)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    described = {entry.name: (entry.type, entry.shape) for entry in (*session.get_inputs(), *session.get_outputs())}
    assert described == {
        "image": ("tensor(float)", ["batch", 3, "height", "width"]),
        "superpixels": ("tensor(int64)", ["batch", "height", "width"]),
        "logits": ("tensor(float)", ["batch", 9, "height", "width"]),
    }
    assert session.get_modelmeta().custom_metadata_map["run"] == "ecrf"
    text = (tmp_path / "out/README.md").read_text()
    results = json.loads(Path("results/ecrf.json").read_text())
    for words in (
        "# ecrf: semantic segmentation of scenes", "float32 [batch", "n_segments=30",
        f"{100 * results['single_scale']['miou']:.2f}", read_weights(Path("runs/ecrf/weights/seed-0.pt")).fingerprint, "Apache-2.0",
    ):  # fmt: skip
        assert words in text


def test_safetensors_give_the_same_predictions(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--run", "ecrf", "--out", tmp_path, "--format", "safetensors") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    pair = prepared.pairs(prepared.read(), "val")[0]
    file = store.path("images", pair.image)
    one, other = Predictor.load("ecrf"), Predictor.load(tmp_path)
    np.testing.assert_array_equal(other(file), one(file))
    assert (other.classes, other.palette) == (one.classes, one.palette)
    np.testing.assert_array_equal(Predictor.load(tmp_path / "model.safetensors")(file), one(file))
    before, after = read_weights(Path("runs/ecrf/weights/seed-0.pt")), released.read(tmp_path)[0]
    assert all(torch.equal(tensor, after.state[name]) for name, tensor in before.state.items())
    assert (before.fingerprint, before.config.head, before.superpixels) == (after.fingerprint, after.config.head, after.superpixels)


def test_damaged_exports_are_named(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--run", "ecrf", "--out", tmp_path, "--format", "safetensors") == 0
    whole, described = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "config.json").read_text()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        Predictor.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text(described.replace(released.read(tmp_path)[0].fingerprint, "0" * 16))
    with pytest.raises(UserError, match="are of different runs"):
        Predictor.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no export of this project"):
        Predictor.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "nobody"], "run nobody has no weights in runs/nobody/weights: train it first; runs that are finished: ecrf"),
        (["--run", "ecrf", "--seed", "4"], "run ecrf has no seed 4; it has 0"),
        (["--run", "ecrf", "--images", "params.yaml"], "--images: does not decode"),
        (["--run", "ecrf", "--format", "onnx", "--register", "ecrf"], "--register needs safetensors"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--out", tmp_path / "out") == 2
    line = capfd.readouterr().err.strip()
    assert line.startswith("error: ")
    assert words in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


def test_onnx_that_is_not_installed_is_said(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Asked for it is an error, otherwise it is left out with a warning."""
    monkeypatch.setattr(graph, "LIBRARIES", ("onnx", "a_library_that_nobody_has"))
    assert run("--run", "ecrf", "--out", tmp_path / "out", "--format", "onnx") == 2
    assert "error: --format onnx needs a_library_that_nobody_has: `uv sync --extra onnx`" in capfd.readouterr().err
    from stages.export import formats

    assert formats(None, ["onnx"]) == ("torch", "safetensors")
    assert "model.onnx is left out" in capfd.readouterr().err


def test_a_run_of_another_dataset_needs_images(run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    payload = torch.load("runs/ecrf/weights/seed-0.pt", weights_only=True)
    payload["config"]["data"]["dataset"] = "camvid"
    torch.save(payload, tmp_path / "other.pt")
    assert run("--run", tmp_path / "other.pt", "--out", tmp_path / "out", "--format", "torch") == 2
    assert "is of camvid with 9 classes, data/prepared.json is of scenes: name images to check on: --images FILES" in capfd.readouterr().err


def test_a_check_that_fails_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    def logits(noise: float) -> graph.Runner:
        return lambda inputs: np.stack([inputs[0][:, 0].numpy(), 0.5 + noise * inputs[0][:, 1].numpy()], 1)

    inputs = [(torch.rand(1, 3, 20, 30),)]
    assert graph.check(logits(0), logits(0), inputs) == Check(1, ((20, 30),), 0.0, pytest.approx(1, abs=0.1), 1.0)
    found = graph.check(logits(0.1), logits(0), inputs)
    assert found.difference == pytest.approx(0.1, abs=0.02)
    assert not found.passed
    assert not graph.check(lambda each: np.full((1, 2, 20, 30), np.nan, np.float32), logits(0), inputs).passed
    (file := tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is not what the network computes, and is removed: largest difference of logits 0\."):
        export.checked(file, found)
    assert not file.exists()


def test_what_cannot_be_exported_is_refused_with_the_reason() -> None:
    project = Project(Path())
    project.params["methods"] = {
        "one": {"head": {"name": "fcn", "width": 16}, "crf": {"name": "mean_field", "filtering": "permutohedral"},
                "loss": {"name": "cross_entropy"}, "superpixels": "none"},
    }  # fmt: skip
    model = build(parsed(project.params), 5)
    with pytest.raises(UserError, match="it has no form for other programs: crf mean_field: filtering: permutohedral"):
        graph.trace(model, (torch.zeros(2, 3, 48, 64),))


def test_a_card_holds_any_class_name(project: Path) -> None:
    weights = read_weights(Path("runs/ecrf/weights/seed-0.pt"))
    names = ("<script>alert(1)</script>", "a|b", "two\nlines", *weights.classes[3:])
    text = card.text(type(weights)(weights.config, names, "x", {}, weights.state), [(0, 0, 0)] * 9, [], [])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "a\\|b" in text
    assert "two lines" in text


def test_served_images_and_their_refusals(project: Path) -> None:
    predictor = Predictor.load("ecrf")
    served, file = Served(predictor), store.path("images", prepared.pairs(prepared.read(), "val")[0].image)
    with Image.open(file) as opened:
        image_HW3 = np.asarray(opened.convert("RGB"))
    wanted = predictor(file)
    for found in (
        served.predict(image_HW3), served.predict(str(file)), served.predict([str(file)])[0], served.predict(image_HW3[None])[0],
        served.predict([image_HW3, image_HW3[:20]])[0], served.predict(image_HW3.tolist()), served.predict(np.array([str(file)]))[0],
    ):  # fmt: skip
        np.testing.assert_array_equal(found, wanted)
    for wrong, words in (
        (image_HW3 / 255, "array of height, width, 3 of integers"), (image_HW3[..., :2], "is height, width, 3, not"),
        (image_HW3.astype(int) + 1000, "from 0 to 255"), (7, "not int"), ("nowhere.png", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            served.predict(wrong)


@pytest.mark.slow
def test_registered_once_and_served_from_the_registry(
    run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], project: Path
) -> None:
    """By stages.predict, and by MLflow in a process without this project's code on its path."""
    import os
    import subprocess

    for words in ("models:/streets/1 at sqlite", "models:/streets/1 is this run already"):
        assert run("--run", "ecrf", "--out", tmp_path / "out", "--format", "safetensors", "--register", "streets") == 0
        assert words in capfd.readouterr().out
    file = store.path("images", prepared.pairs(prepared.read(), "val")[0].image)
    made = Project(project)
    assert made.stage("predict", "--run", "models:/streets/1", str(file), "--out", str(tmp_path / "seen")) == 0
    wanted = Predictor.load("ecrf")(file)
    with Image.open(tmp_path / f"seen/{file.stem}.labels.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), wanted)
    script = "import sys, mlflow, numpy; numpy.save(sys.argv[2], mlflow.pyfunc.load_model('models:/streets/1').predict(sys.argv[1]))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{project / 'mlflow.db'}"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, file.absolute(), tmp_path / "found.npy"], cwd=tmp_path, env=environment, check=True
    )
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), wanted)
    for name in ("models:/nobody/1", "models:/streets/7"):
        with pytest.raises(UserError, match="cannot be had: MLflow at"):
            registry.downloaded(name)
    with pytest.raises(UserError, match="is not registered: MLflow at"):
        registry.register(tmp_path / "out", "a/b")
