"""Predictions are those of the evaluation, from the command and from Python."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.predictions import CLASSES, images, read
from PIL import Image

from pipeline.data import prepared
from pipeline.ground.errors import UserError
from pipeline.release import predictor
from pipeline.release.predictor import Predictor
from pipeline.settings.schema import Part


@pytest.mark.parametrize("run", ["fcn", "ecrf"])
def test_predictions_are_those_of_the_evaluation(run: str, predict: Callable[..., int], project: Path, tmp_path: Path) -> None:
    """With the same protocol, and superpixels that are made anew."""
    files = images()
    assert predict("--run", run, "--out", tmp_path / "out", *files.values(), "--scales", "0.75", "1", "--flip") == 0
    drawn = sorted((project / f"results/{run}/pictures").glob("*.prediction.png"))
    assert len(drawn) == 4
    for path in drawn:
        file = files[path.name.removesuffix(".prediction.png")]
        labels = tmp_path / "out" / f"{file.stem}.labels.png"
        np.testing.assert_array_equal(read(labels), read(path))
        with Image.open(labels) as opened:
            assert opened.mode == "P"
            assert opened.getpalette()[: 3 * CLASSES] == [value for colour in prepared.read().palette for value in colour]
        overlay = read(tmp_path / "out" / f"{file.stem}.overlay.png")
        assert overlay.shape == (*read(labels).shape, 3)
        with Image.open(file) as original:
            assert np.abs(overlay.astype(int) - np.asarray(original.convert("RGB"))).mean() > 5
    assert (tmp_path / "out/legend.png").is_file()


def test_three_lines_of_python(project: Path) -> None:
    file = next(iter(images().values()))
    made = Predictor.load("ecrf")
    ids_HW = made(file)
    assert ids_HW.shape == read(file).shape[:2]
    assert ids_HW.dtype == np.uint8
    assert ids_HW.max() < len(made.classes) == CLASSES
    np.testing.assert_array_equal(made(Image.open(file)), ids_HW)
    with pytest.raises(UserError, match="mode I;16 would lose its shades"):
        made(Image.fromarray(np.zeros((40, 40), np.uint16)))
    np.testing.assert_array_equal(Predictor.load("runs/ecrf/weights/seed-0.pt", seed=7)(file), ids_HW)


def test_a_run_by_its_folder_from_elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next(iter(images().values())).absolute()
    here = Predictor.load("fcn")
    monkeypatch.chdir(tmp_path)
    there = Predictor.load(project / "runs/fcn")
    np.testing.assert_array_equal(there(file), here(file))
    assert there.palette == here.palette
    with pytest.raises(UserError, match="run fcn has no weights in runs/fcn/weights"):
        Predictor.load("fcn")


def test_learned_positions_fix_the_window(project: Path) -> None:
    """A ConvCRF that learned them takes windows of one size alone, whatever the image."""
    trained = predictor.read_weights(Path("runs/fcn/weights/seed-0.pt")).config
    learned = replace(trained, crf=Part(name="conv", options={"position": [32, 48]}))
    assert predictor.fixed_window(trained, None) is None
    assert predictor.fixed_window(trained, (20, 30)) == (20, 30)
    assert predictor.fixed_window(learned, None) == predictor.fixed_window(learned, (32, 48)) == (32, 48)
    with pytest.raises(UserError, match="run fcn has learned its crf's position for windows of 32 x 48 alone"):
        predictor.fixed_window(learned, (20, 30))


@pytest.mark.parametrize("options", [[], ["--scales", "0.5", "1", "1"], ["--window", "32", "40"]], ids=["one", "several", "windows"])
def test_probabilities_are_written_and_agree_with_the_labels(options: list[str], predict: Callable[..., int], tmp_path: Path) -> None:
    file = next(iter(images().values()))
    assert predict("--run", "fcn", "--out", tmp_path, file, "--probabilities", *options) == 0
    found_KHW = np.load(tmp_path / f"{file.stem}.probabilities.npy")
    labels_HW = read(tmp_path / f"{file.stem}.labels.png")
    assert found_KHW.dtype == np.float16
    assert found_KHW.shape == (CLASSES, *labels_HW.shape)
    np.testing.assert_allclose(found_KHW.astype(float).sum(0), 1, atol=3e-3)
    chosen_HW = np.take_along_axis(found_KHW, labels_HW[None].astype(int), 0)[0]
    assert (chosen_HW >= found_KHW.max(0) - 1e-3).all()


def test_names_that_meet_keep_their_suffix(predict: Callable[..., int], tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    assert predict("--run", "fcn", "--out", tmp_path / "out", str(tmp_path / "*.*g")) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.labels.png")) == ["a.jpg.labels.png", "a.png.labels.png", "b.labels.png"]


def test_classes_of_another_dataset_get_colours_of_their_own(project: Path, tmp_path: Path) -> None:
    payload = torch.load("runs/fcn/weights/seed-0.pt", weights_only=True)
    torch.save({**payload, "classes": [f"class {number}" for number in range(CLASSES)]}, tmp_path / "other.pt")
    made = Predictor.load(tmp_path / "other.pt")
    assert made.classes[0] == "class 0"
    assert len(set(made.palette)) == CLASSES
    assert made.palette != tuple(map(tuple, json.loads(Path("data/prepared.json").read_text())["palette"]))
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="no weights file"):
        Predictor.load(tmp_path / "bad.pt")
