"""Miniatures of the public datasets' archives, in the real ones' layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

ROOT = Path("unwatched.py")
SIZE = (3, 4)  # height, width


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def grey(path: Path, ids: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(ids, np.uint8), SIZE)).save(path)


def indexed(path: Path, ids: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.resize(np.array(ids, np.uint8), SIZE)).convert("P")
    image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    image.putdata(np.resize(ids, SIZE).ravel().tolist())
    image.save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def matlab(path: Path, **variables: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def ade20k(folder: Path) -> list[Path]:
    top = folder / "ADEChallengeData2016"
    for split, stem in (("training", "ADE_train_00000001"), ("training", "ADE_train_00000002"), ("validation", "ADE_val_00000001")):
        picture(top / f"images/{split}/{stem}.jpg")
        grey(top / f"annotations/{split}/{stem}.png", [0, 1, 150])
    text(top / "objectInfo150.txt", "Idx")
    return [folder]


def cityscapes(folder: Path) -> list[Path]:
    for split, city, stem in (
        ("train", "aachen", "aachen_000000_000019"),
        ("val", "lindau", "lindau_1_2"),
        ("test", "berlin", "berlin_1_2"),
    ):
        picture(folder / f"images/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        for kind in ("labelIds", "labelTrainIds", "instanceIds"):
            grey(folder / f"labels/gtFine/{split}/{city}/{stem}_gtFine_{kind}.png", [0, 7, 33, 29, 255])
        text(folder / f"labels/gtFine/{split}/{city}/{stem}_gtFine_polygons.json", "{}")
    return [folder / "images", folder / "labels"]


def kitti(folder: Path) -> list[Path]:
    for number in range(152):
        picture(folder / f"training/image_2/{number:06}_10.png")
        grey(folder / f"training/semantic/{number:06}_10.png", [0, 7, 33, 29, 255])
    picture(folder / "testing/image_2/000000_10.png")
    return [folder]


def bdd100k(folder: Path) -> list[Path]:
    for split, stem in (("train", "a-1"), ("val", "b-2"), ("test", "c-3")):
        picture(folder / f"images/bdd100k/images/10k/{split}/{stem}.jpg")
        if split != "test":
            grey(folder / f"labels/bdd100k/labels/sem_seg/masks/{split}/{stem}.png", [0, 18, 255])
            picture(folder / f"labels/bdd100k/labels/sem_seg/colormaps/{split}/{stem}.png")
    return [folder / "images", folder / "labels"]


def voc2012(folder: Path) -> list[Path]:
    top, sbd = folder / "voc/VOCdevkit/VOC2012", folder / "sbd/benchmark_RELEASE/dataset"
    for stem in ("2007_000032", "2007_000033", "2008_000002", "2008_000003", "2008_000007"):
        picture(top / f"JPEGImages/{stem}.jpg")
    text(top / "ImageSets/Segmentation/train.txt", "2007_000032")
    text(top / "ImageSets/Segmentation/val.txt", "2007_000033", "2008_000007")
    for stem in ("2007_000032", "2007_000033", "2008_000007"):
        indexed(top / f"SegmentationClass/{stem}.png", [0, 20, 255])
        indexed(top / f"SegmentationObject/{stem}.png", [0, 1, 2])
    text(sbd / "train.txt", "2008_000002", "2007_000032")  # the second one has VOC's own label
    text(sbd / "val.txt", "2008_000003", "2008_000007")  # the second one belongs to VOC's val
    for stem in ("2008_000002", "2007_000032", "2008_000003", "2008_000007"):
        shapes = {"Boundaries": np.zeros((2, 2)), "Segmentation": np.resize(np.array([0, 20, 5], np.uint8), SIZE)}
        matlab(sbd / f"cls/{stem}.mat", GTcls=shapes)
    return [folder / "voc", folder / "sbd"]


def pascal_context(folder: Path) -> list[Path]:
    top = folder / "voc/VOCdevkit/VOC2010"
    for stem in ("2008_000008", "2008_000002", "2008_000009"):
        picture(top / f"JPEGImages/{stem}.jpg")
        matlab(folder / f"labels/trainval/{stem}.mat", LabelMap=np.resize(np.array([0, 2, 458, 1, 459], np.uint16), SIZE))
    text(top / "ImageSets/Main/train.txt", "2008_000008")
    text(top / "ImageSets/Main/val.txt", "2008_000002")
    return [folder / "voc", folder / "labels"]


def cocostuff10k(folder: Path) -> list[Path]:
    names = {"train": "COCO_train2014_000000000077", "test": "COCO_train2014_000000000825"}
    for split, stem in names.items():
        picture(folder / f"images/{stem}.jpg")
        matlab(folder / f"annotations/{stem}.mat", S=np.resize(np.array([0, 1, 182], np.uint8), SIZE), regionLabelsStuff=np.arange(3))
        text(folder / f"imageLists/{split}.txt", stem)
    text(folder / "imageLists/all.txt", *names.values())
    return [folder]


def cocostuff164k(folder: Path) -> list[Path]:
    for split, stem in (("train2017", "000000000009"), ("val2017", "000000000139")):
        picture(folder / f"{split}/{split}/{stem}.jpg")
        grey(folder / f"maps/{split}/{stem}.png", [255, 0, 181])
    return [folder / "train2017", folder / "val2017", folder / "maps"]


V = 255
# The builder of a miniature, the names by split, and what the first label's first ids become.
MINIATURES: dict[str, tuple[Callable[[Path], list[Path]], dict[str, list[str]], list[int]]] = {
    "ade20k": (ade20k, {"train": ["ADE_train_00000001", "ADE_train_00000002"], "val": ["ADE_val_00000001"]}, [V, 0, 149]),
    "cityscapes": (cityscapes, {"train": ["aachen_000000_000019"], "val": ["lindau_1_2"]}, [V, 0, 18, V, V]),
    "kitti": (kitti, {"train": [f"{n:06}_10" for n in range(150)], "val": ["000150_10", "000151_10"]}, [V, 0, 18, V, V]),
    "bdd100k": (bdd100k, {"train": ["a-1"], "val": ["b-2"]}, [0, 18, V]),
    "voc2012": (voc2012, {"train": ["2007_000032", "2008_000002", "2008_000003"], "val": ["2007_000033", "2008_000007"]}, [0, 20, V]),
    "pascal_context": (pascal_context, {"train": ["2008_000008"], "val": ["2008_000002"]}, [V, 0, 58, V, V]),
    "cocostuff10k": (cocostuff10k, {"train": ["COCO_train2014_000000000077"], "val": ["COCO_train2014_000000000825"]}, [V, 0, 170]),
    "cocostuff164k": (cocostuff164k, {"train": ["000000000009"], "val": ["000000000139"]}, [V, 0, 170]),
}
