"""What preparing publishes: equal bytes for equal content, files that are linked, and a manifest that is read back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from makers.own_pairs import ROOT, command, prepare
from PIL import Image

from pipeline.data import prepared
from pipeline.datasets import DATASETS
from pipeline.datasets.folder import Folder
from pipeline.datasets.scenes import Scenes
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.preparation import pairs as preparation
from pipeline.preparation import summary


def test_the_command_publishes_what_the_store_has(own: Path):
    result = command()
    assert result.returncode == 0, result.stderr
    assert "train: 5 pairs of 8 x 12" in result.stdout
    published = prepared.read()
    assert (published.dataset, published.classes, len(published.palette)) == ("folder", ("a", "b"), 2)
    assert {split: len(pairs) for split, pairs in published.splits.items()} == {"train": 5, "val": 1}
    for pair in (*published.splits["train"], *published.splits["val"]):
        with Image.open(own / "images" / f"{pair.name}.png") as image, Image.open(own / "masks" / f"{pair.name}.png") as mask:
            assert (np.array(prepared.open_image(pair)) == np.array(image)).all()
            assert (prepared.open_label(pair) == np.array(mask)).all()
        for kind, name in (("images", pair.image), ("labels", pair.label)):
            assert files.sha256(store.path(kind, name)) == name.partition(".")[0]


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("stray", 2), ("--stray", 2)])
def test_an_argument_does_not_start_the_command(own: Path, argument: str, status: int):
    result = command(argument)
    assert result.returncode == status
    assert "usage: uv run python -m stages.prepare" in result.stdout + result.stderr
    assert not store.PREPARED.exists()


def test_equal_content_makes_equal_bytes(own: Path):
    prepare()
    first = store.PREPARED.read_bytes()
    shutil.rmtree("data")
    shutil.copytree("own", "moved")
    shutil.rmtree("own")
    prepare(Path("moved"))
    assert store.PREPARED.read_bytes() == first
    read = prepared.read()
    prepared.write(read)
    assert store.PREPARED.read_bytes() == first


def test_editing_ones_own_file_in_place_leaves_the_store_alone(own: Path):
    published = prepare()
    pair = published.splits["train"][0]
    before = prepared.open_image(pair).tobytes()
    with (own / "images" / f"{pair.name}.png").open("r+b") as file:
        file.write(b"scribble")
    assert prepared.open_image(pair).tobytes() == before


def test_generated_files_are_linked_and_lost_ones_are_drawn_again(workspace: Path):
    dataset = Scenes(Path("unused"), train_images=3, val_images=2, height=32, width=40, seed=0)
    folder = store.root() / "generated" / "scenes"
    published, pixels = preparation.prepare(dataset, "scenes", folder)
    assert {split: len(pairs) for split, pairs in published.splits.items()} == {"train": 3, "val": 2}
    assert pixels["train"].total() == 3 * 32 * 40
    assert all(store.path("images", pair.image).stat().st_nlink == 2 for pair in published.splits["train"])
    shutil.rmtree(store.root())
    assert preparation.prepare(dataset, "scenes", folder)[0] == published


def test_doubts_are_voiced(own: Path):
    shutil.copy(own / "images" / "0.png", own / "images" / "1.png")
    for place in range(6):
        Image.fromarray(np.full((8, 12), 9 if place else 0, np.uint8)).save(own / "masks" / f"{place}.png")
    dataset = Folder(Path("own"), classes=["a", "b"], ignore=9, val_share=0.5)
    published, pixels = preparation.prepare(dataset, "folder", Path("unused"))
    said = "\n".join(summary.doubts(published, pixels))
    assert "has the class b" in said or "has the class a, b" in said
    assert "have no class: is data.ignore right?" in said
    shown = summary.lines(published, pixels)
    assert any(line.startswith("ignored") for line in shown)


def test_manifests_that_are_missing_damaged_or_asked_for_too_much(own: Path):
    with pytest.raises(UserError, match=r"prepared.json does not exist: run `uv run dvc repro prepare`"):
        prepared.read()
    published = prepare()
    with pytest.raises(UserError, match="dataset folder has no split 'test'; known: train, val"):
        prepared.pairs(published, "test")
    assert prepared.pairs(published, "val") == published.splits["val"]
    raw = json.loads(store.PREPARED.read_bytes())
    del raw["splits"]["train"][0]["image"]
    store.PREPARED.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is damaged: run"):
        prepared.read()


def test_every_dataset_keeps_the_contract():
    options = {"scenes": {"train_images": 1, "val_images": 1, "height": 32, "width": 32, "seed": 0}, "folder": {"classes": ["a"]}}
    for name, constructor in DATASETS.items():
        dataset = constructor(Path("unused"), **options.get(name, {}))
        assert len(dataset.classes) == len(dataset.palette)
        assert {"train", "val"} <= set(dataset.splits)


def test_preparing_imports_no_torch(own: Path):
    code = (
        "import sys\nfrom stages import prepare\nprepare.main()\n"
        "assert not {'torch', 'timm', 'skimage', 'mlflow'} & set(sys.modules), 'heavy imports'"
    )
    command()
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
