"""Figures that cannot be drawn: mistakes in the settings, and runs that are missing, of other data or damaged, are one line."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.project import Project
from makers.stored import put_pair, textured

from pipeline.data import prepared

MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"image": 2}, ["figures.image is unknown", "did you mean images"]),
    "unknown figure": ({"runs": {"flows": "decoupled"}}, ["figures.runs: 'flows'", "did you mean flow"]),
    "unknown run": ({"runs": {"flow": "decopled"}}, ["figures.runs.flow", "did you mean decoupled"]),
    "run without it": ({"runs": {"flow": ["ecrf"]}}, ["figures.runs.flow: ecrf does not have head decoupled; runs that do: decoupled"]),
    "unknown baseline": ({"baseline": "dplab"}, ["figures.baseline", "did you mean deeplab"]),
    "unknown image": ({"images": ["val-9"]}, ["figures.images: the split has no image 'val-9'", "known: ", "val-000001"]),
    "no images": ({"images": 0}, ["figures.images"]),
    "pixel outside": ({"pixel": [47, 64]}, ["figures.pixel: [47, 64] is outside image", "48 x 64"]),
    "pixel of one number": ({"pixel": [3]}, ["figures.pixel"]),
    "unknown split": ({"split": "tset"}, ["has no split 'tset'; known: "]),
    "unknown seed": ({"seed": 7}, ["figures.seed: run", "has no seed 7; known: 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    settings, words = MISTAKES[mistake]
    there.params["figures"] = settings
    assert there.stage("figures") == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert not list(Path().glob("figures/*.png"))


def test_what_is_not_finished_waits_and_says_what_to_run(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "decoupled", "joint_crf")}
    shutil.rmtree("runs/decoupled")
    assert there.stage("figures") == 0
    said = capsys.readouterr().out
    assert (
        "left out: flow: run decoupled is not finished (runs/decoupled/weights has no weights): run `uv run dvc repro train@decoupled`"
        in said
    )
    assert [path.name for path in Path("figures").glob("*.png")] == ["compatibility-joint_crf.png"]
    there.params["figures"] = {"runs": {"flow": "decoupled"}}
    assert there.stage("figures") == 2
    assert "error: run decoupled is not finished" in capsys.readouterr().err
    there.params["figures"] = {}
    shutil.rmtree("runs/joint_crf")
    assert there.stage("figures") == 2
    assert "run `uv run dvc repro train@" in capsys.readouterr().err


def test_runs_of_other_data_and_damaged_ones_are_refused(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "joint_crf")}
    path = Path("runs/joint_crf/weights/seed-0.pt")
    payload = torch.load(path, weights_only=True)
    for change, words in (
        ({"config": {**payload["config"], "data": {**payload["config"]["data"], "dataset": "camvid"}}}, "was trained on camvid"),
        ({"classes": ["only"]}, "has other classes"),
    ):
        torch.save({**payload, **change}, path)
        assert there.stage("figures") == 2
        line = capsys.readouterr().err
        assert words in line
        assert "run `uv run dvc repro train@joint_crf`" in line
        assert line.count("\n") == 1
    path.write_bytes(path.read_bytes()[:1000])
    assert there.stage("figures") == 2
    assert "damaged" in capsys.readouterr().err


def test_weights_of_another_method_by_that_name_are_refused(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("runs/deeplab/weights/seed-0.pt", "runs/joint_crf/weights/seed-0.pt")
    assert there.stage("figures", "--only", "compatibility", "--out", "scratch") == 2
    assert "was trained without crf mean_field" in capsys.readouterr().err
    shutil.copy("runs/decoupled/weights/seed-0.pt", "runs/deeplab/weights/seed-0.pt")
    assert there.stage("figures", "--only", "rates", "--out", "scratch") == 2
    line = capsys.readouterr().err
    assert "runs/deeplab/weights was trained as a method that figure rates cannot have for its baseline" in line
    assert "run `uv run dvc repro train@deeplab`" in line


def test_images_without_labels_are_refused_and_a_sample_of_one_class_leaves_out_what_it_cannot_show(
    there: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "ecrf", "car")}
    manifest = prepared.read()
    blank, road = (put_pair(name, textured(0, 48, 64), np.full((48, 64), id_, np.uint8)) for name, id_ in (("blank", 255), ("road", 2)))
    prepared.write(replace(manifest, splits={**manifest.splits, "val": (blank,)}))
    assert there.stage("figures") == 2
    assert "the chosen images of split val have no labels (blank): choose others" in capsys.readouterr().err
    prepared.write(replace(manifest, splits={**manifest.splits, "val": (road,)}))
    assert there.stage("figures", "--only", "class-weights", "dependencies", "--out", "scratch") == 0
    assert "left out: class-weights-ecrf: no two classes touch in 1 images of val" in capsys.readouterr().out
    assert [path.name for path in Path("scratch").glob("*.png")] == ["dependencies-car.png"]
