"""Readers of the public datasets on real pairs and published lists, where they are present."""

import csv
from pathlib import Path

import numpy as np
import pytest
from makers.miniatures import MINIATURES, ROOT, V, text, voc2012
from PIL import Image

from pipeline.datasets import DATASETS


def real(shared: Path, name: str) -> Path:
    folder = shared / "data" / name
    if not folder.exists():
        pytest.skip(f"{name} is not here")
    return folder


def test_ade20k_on_real_pairs(shared: Path) -> None:
    folder, dataset = real(shared, "samples/ade20k"), DATASETS["ade20k"](ROOT)
    for path in sorted(folder.glob("*.png")):
        raw, label = np.array(Image.open(path)).astype(int), dataset.label(path)
        assert np.array_equal(label == V, raw == 0)
        assert np.array_equal(label[raw > 0], raw[raw > 0] - 1)


def test_cityscapes_on_its_own_training_ids(shared: Path) -> None:
    folder, dataset = real(shared, "samples/cityscapes"), DATASETS["cityscapes"](ROOT)
    (path,) = folder.rglob("*_gtFine_labelIds.png")
    expected = np.array(Image.open(path.with_name(path.name.replace("labelIds", "labelTrainIds"))))
    # The two files of this reduced pair were resized one by one, so that a few pixels at outlines differ.
    assert (dataset.label(path) != expected).mean() < 0.005
    with open(real(shared, "lists/cityscapes_labels.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["trainId"] not in ("255", "-1")]
    assert [row["name"] for row in rows] == list(dataset.classes)
    assert [tuple(int(row[channel]) for channel in "RGB") for row in rows] == list(dataset.palette)


def test_voc_on_a_real_indexed_label(shared: Path) -> None:
    label = DATASETS["voc2012"](ROOT).label(real(shared, "samples/voc2012") / "label.png")
    assert set(np.unique(label)) <= {*range(21), V}
    assert V in label
    with Image.open(shared / "data/samples/voc2012/label.png") as image:
        assert np.reshape(image.getpalette(), (-1, 3))[:21].tolist() == [list(colour) for colour in DATASETS["voc2012"](ROOT).palette]


@pytest.mark.parametrize(("name", "file"), [("cocostuff164k", "cocostuff-labels.txt"), ("pascal_context", "pascal-context-classes-59.txt")])
def test_names_are_the_published_ones(name: str, file: str, shared: Path) -> None:
    known = [line.partition(": ")[2].strip() for line in real(shared, f"lists/{file}").read_text().splitlines()][1:]
    mine = DATASETS[name](ROOT).classes
    assert [label for label in known if label in mine] == list(mine)


def names_in(shared: Path, name: str) -> list[str]:
    return real(shared, f"lists/{name}.txt").read_text().split()


def found(name: str, *folders: Path) -> dict[str, list[str]]:
    sources = DATASETS[name](ROOT).sources(*folders)
    return {split: [source.name for source in sources if source.split == split] for split in ("train", "val")}


def test_trainaug_is_the_published_list(shared: Path, tmp_path: Path) -> None:
    """SBD's two splits and VOC's own in any division: some names are in two of them, and SBD has images of VOC's val."""
    train, val = names_in(shared, "voc2012-trainaug"), names_in(shared, "voc2012-val")
    voc, sbd = voc2012(tmp_path)
    text(voc / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", *train[::7])
    text(voc / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", *val)
    text(sbd / "benchmark_RELEASE/dataset/train.txt", *train[: len(train) // 2], *val[:600])
    text(sbd / "benchmark_RELEASE/dataset/val.txt", *train[len(train) // 2 :], *val[600:900])
    split = found("voc2012", voc, sbd)
    assert (len(split["train"]), len(split["val"])) == (10_582, 1_449)
    assert (set(split["train"]), split["val"]) == (set(train), val)


@pytest.mark.parametrize(("name", "lists", "counts"), [
    ("pascal_context", ("pascal-context-train", "pascal-context-val"), (4_998, 5_105)),
    ("cocostuff10k", ("cocostuff10k-train", "cocostuff10k-test"), (9_000, 1_000)),
])  # fmt: skip
def test_splits_are_the_published_lists(name: str, lists: tuple[str, str], counts: tuple[int, int], shared: Path, tmp_path: Path) -> None:
    train, val = (names_in(shared, each) for each in lists)
    folders = MINIATURES[name][0](tmp_path)
    for split, names in (("train", train), ("val" if name == "pascal_context" else "test", val)):
        for path in tmp_path.rglob(f"{split}.txt"):
            path.write_text("".join(f"{each}  1\n" for each in names))  # VOC's lists have a second column
    split = found(name, *folders)
    assert (len(split["train"]), len(split["val"])) == counts
    assert (split["train"], split["val"]) == (train, val)


def test_ade20k_has_its_150_names_in_order(shared: Path) -> None:
    with real(shared, "lists/ade20k-objectInfo150.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, DATASETS["ade20k"](ROOT).classes, strict=True):
        assert row["Name"].split(";")[: len(name.split())] == name.split()
