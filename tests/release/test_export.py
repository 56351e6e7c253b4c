"""Exported files: they compute what the network computes, at other sizes too, and load where they should."""

import base64
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.networks import smooth
from makers.project import Project
from PIL import Image
from torch import nn

from pipeline.data import images, prepared
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.release import card, export, graph, registry, released
from pipeline.release.graph import Check
from pipeline.release.predictor import Predictor
from pipeline.release.served import Served
from pipeline.settings import config
from pipeline.tracking import copy
from pipeline.tracking.attempt import Attempt
from pipeline.training.checkpoint import read_weights


@pytest.fixture
def run(project: Path) -> Callable[..., int]:
    """What `python -m stages.export` does."""
    made = Project(project)
    made.params["train"]["iterations"] = 4
    return lambda *arguments: made.stage("export", *map(str, arguments))


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
    runners = graph.onnx_runner(tmp_path / "out/model.onnx"), graph.torch_runner(tmp_path / "out/model.pt2")
    torch.manual_seed(1)
    for batch, height, width in ((1, 40, 60), (3, 57, 83)):
        superpixels = torch.arange(height * width).view(1, height, width).expand(batch, -1, -1) // 50 * 977 - 3000
        inputs = (smooth(batch, height, width), superpixels.contiguous())
        wanted = graph.original(model)(inputs)
        for runner in runners:
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
    text, results = (tmp_path / "out/README.md").read_text(), json.loads(Path("results/ecrf.json").read_text())["single_scale"]
    for words in (
        "# ecrf: semantic segmentation of scenes", "float32 [batch", read_weights(Path("runs/ecrf/weights/seed-0.pt")).fingerprint,
        f"| `ecrf` | 4 images of val | {100 * results['miou']:.2f} |", f"| {100 * max(results['iou'].values()):.2f} |\n",
    ):  # fmt: skip
        assert words in text
    wanted = np.concatenate([labels_of_card_image(model, tmp_path / "out")] * 2)
    np.testing.assert_array_equal(labels_by_card(text, tmp_path / "out"), wanted)


def labels_of_card_image(model: nn.Module, folder: Path) -> np.ndarray:
    """Put an image of another size than was traced where the card's code has it, and give the network's labels of it."""
    pair = prepared.pairs(prepared.read(), "val")[1]
    with Image.open(store.path("images", pair.image)) as image:
        image.convert("RGB").crop((3, 5, 60, 46)).save(folder / "street.jpg")
    inputs = export.inputs_of(images.rgb(folder / "street.jpg"), config.load(Path("params.yaml")).superpixels["slic"])
    assert inputs[1].max() > 5
    return graph.original(model)(inputs).argmax(1)  # type: ignore[arg-type]


def labels_by_card(text: str, folder: Path) -> np.ndarray:
    """What the card's code for ONNX and torch, as it stands, finds without this project: both label maps."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Predictor" not in block]
    assert len(blocks) == 3
    lines = [
        *blocks[:2],
        "first = labels\n",
        blocks[2],
        "np.save('found.npy', [first, labels])\nimport sys\nassert 'pipeline' not in sys.modules\n",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", "".join(lines)], cwd=folder, env=environment, check=True)
    return np.load(folder / "found.npy")


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


def test_a_folder_has_the_files_of_one_export_and_an_export_can_be_exported(
    run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other, names = tmp_path / "one", tmp_path / "other", ["README.md", "config.json", "model.safetensors"]
    assert run("--run", "ecrf", "--out", one, "--format", "safetensors") == 0
    (one / "model.onnx").write_bytes(b"of an earlier export")
    (one / "notes.txt").write_text("mine")
    for goal in (one, other):
        assert run("--run", one, "--out", goal, "--format", "safetensors") == 0
        assert f"ecrf, seed 0, is exported > {goal}" in capfd.readouterr().out
        for name in names:
            assert (goal / name).read_bytes() == (one / name).read_bytes()
    assert sorted(path.name for path in one.iterdir()) == [*names, "notes.txt"]
    with pytest.raises(UserError, match="is of seed 0, not 4"):
        Predictor.load(one, seed=4)


def test_what_is_no_export_is_not_written_over(run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    assert run("--run", "ecrf", "--out", tmp_path, "--format", "safetensors") == 2
    assert "README.md is no card of an export, and would be lost: name a folder of its own with --out" in capfd.readouterr().err
    assert run("--run", "ecrf", "--out", tmp_path / "README.md", "--format", "safetensors") == 2
    assert "README.md is a file: name a folder" in capfd.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["# My project\n"]


def test_a_card_has_the_scores_of_its_weights_alone(project: Path) -> None:
    weights = read_weights(Path("runs/ecrf/weights/seed-0.pt"))
    found = card.scores(weights)
    assert [entry["evaluation"] for entry in found] == ["ecrf"]
    assert card.scores(replace(weights, fingerprint="0" * 16)) == []
    after_crf = {**found[0], "evaluation": "vanilla", "dense_crf": {}}
    assert "| `vanilla`, with a dense CRF after it, in none of the files | 4 images of val |" in card.table_of([*found, after_crf])
    assert "IoU" not in card.classes(weights.classes, [(0, 0, 0)] * 9, [after_crf])


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
        (["--run", "ecrf", "--images", "params.yaml"], "--images params.yaml: does not decode"),
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
    with pytest.raises(UserError, match=r"the exported file does not run on \(1, 3, 20, 30\): integer division"):
        graph.check(lambda each: np.full(1 // 0, each), logits(0), inputs)
    (file := tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is not what the network computes, and is removed: largest difference of logits 0\."):
        export.checked(file, found)
    assert not file.exists()


def test_a_card_holds_any_class_name(project: Path) -> None:
    weights = read_weights(Path("runs/ecrf/weights/seed-0.pt"))
    names = ("<script>alert(1)</script>", "a|b", "two\nlines", *weights.classes[3:])
    text = card.text(type(weights)(weights.config, names, "x", {}, weights.state), [(0, 0, 0)] * 9, [], [])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "a\\|b" in text
    assert "two lines" in text


def as_url(file: Path) -> str:
    """A file as a server's request may have it."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def test_served_images_and_their_refusals(project: Path) -> None:
    import pandas

    predictor = Predictor.load("ecrf")
    served, file = Served(predictor), store.path("images", prepared.pairs(prepared.read(), "val")[0].image)
    with Image.open(file) as opened:
        image_HW3 = np.asarray(opened.convert("RGB"))
    wanted = predictor(file)
    for found in (
        served.predict(image_HW3), served.predict(str(file)), served.predict([str(file)])[0], served.predict(image_HW3[None])[0],
        served.predict([image_HW3, image_HW3[:20]])[0], served.predict(image_HW3.tolist()), served.predict(np.array([str(file)]))[0],
        served.predict(file.read_bytes()), served.predict([as_url(file)])[0], served.predict(pandas.DataFrame({"image": [str(file)]}))[0],
    ):  # fmt: skip
        np.testing.assert_array_equal(found, wanted)
    for wrong, words in (
        (image_HW3 / 255, "array of height, width, 3 of integers"), (image_HW3[..., :2], "is height, width, 3, not"),
        (image_HW3.astype(int) + 1000, "from 0 to 255"), (7, "not int"), ("nowhere.png", "does not exist"),
        (b"no image", "does not decode"), ("data:image/png,abc", "no image as data:"), ("data:image/png;base64,a", "no image as data:"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            served.predict(wrong)


SERVED = """
import sys, mlflow, numpy
from mlflow.pyfunc.scoring_server import invocations
model = mlflow.pyfunc.load_model("models:/streets/1")
numpy.save("found.npy", model.predict(sys.argv[1]))
answer = invocations(open("request.json").read(), "application/json", model, model.metadata.get_input_schema())
open("answer.json", "w").write(answer.response)
"""


@pytest.mark.slow
def test_registered_once_and_served_from_the_registry(
    run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], project: Path
) -> None:
    """By stages.predict, and by MLflow in a process without this project's code on its path."""
    attempt = Attempt(experiment="scenes", name="ecrf", seed=0, fingerprint=read_weights(Path("runs/ecrf/weights/seed-0.pt")).fingerprint)
    with registry.client_for("not begun") as client:  # a training of long ago
        trained = copy.begin(client, replace(attempt, started=1e9))
        client.set_terminated(trained.info.run_id, "FINISHED", int(1e12) + 5)
    for words in ("models:/streets/1 at sqlite", "models:/streets/1 is this run already"):
        assert run("--run", "ecrf", "--out", tmp_path / "out", "--format", "safetensors", "--register", "streets") == 0
        assert words in capfd.readouterr().out
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        assert database.execute("select status, end_time from runs").fetchall() == [("FINISHED", int(1e12) + 5)]
    file = store.path("images", prepared.pairs(prepared.read(), "val")[0].image)
    made = Project(project)
    assert made.stage("predict", "--run", "models:/streets/1", str(file), "--out", str(tmp_path / "seen")) == 0
    wanted = Predictor.load("ecrf")(file)
    with Image.open(tmp_path / f"seen/{file.stem}.labels.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), wanted)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{project / 'mlflow.db'}"
    (tmp_path / "request.json").write_text(json.dumps({"inputs": [as_url(file)]}))
    subprocess.run([sys.executable, "-W", "ignore", "-c", SERVED, file.absolute()], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), wanted)
    np.testing.assert_array_equal(json.loads((tmp_path / "answer.json").read_text())["predictions"], wanted[None])
    for name in ("models:/nobody/1", "models:/streets/7"):
        with pytest.raises(UserError, match="cannot be had: MLflow at"):
            registry.downloaded(name)
    with pytest.raises(UserError, match="is not registered: MLflow at"):
        registry.register(tmp_path / "out", "a/b")
