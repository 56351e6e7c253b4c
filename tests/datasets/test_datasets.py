"""Readers of the public datasets, each on a miniature archive in the real one's layout, and on real pairs where they are present."""

import csv
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from makers.project import TINY, Project
from PIL import Image
from scipy.io import savemat

from pipeline import datasets
from pipeline.datasets import DATASETS, Source
from pipeline.ground.errors import UserError
from pipeline.preparation import pairs as preparation

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


def test_every_dataset_has_a_miniature() -> None:
    assert MINIATURES.keys() == DATASETS.keys() - {"scenes", "camvid", "folder"}


@pytest.mark.parametrize("name", MINIATURES)
def test_pairs_and_ids_are_the_archives(name: str, tmp_path: Path) -> None:
    build, names, ids = MINIATURES[name]
    dataset = DATASETS[name](ROOT)
    sources = dataset.sources(*build(tmp_path))
    found: dict[str, list[str]] = {}
    for source in sources:
        found.setdefault(source.split, []).append(source.name)
        assert source.image.is_file()
        assert source.label.is_file()
    assert found == names
    assert tuple(found) == dataset.splits
    label = dataset.label(sources[0].label)
    assert (label.dtype, label.shape) == (np.uint8, SIZE)
    assert label.ravel()[: len(ids)].tolist() == ids
    assert len(dataset.classes) == len(dataset.palette) == len(set(dataset.classes))


@pytest.mark.parametrize("name", MINIATURES)
def test_an_archive_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    build, _, _ = MINIATURES[name]
    folders = build(tmp_path / "right")
    (tmp_path / "wrong/other").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no folder with .*: it is not "):
        DATASETS[name](ROOT).sources(*[tmp_path / "wrong"] * len(folders))


@pytest.mark.parametrize("name", MINIATURES)
def test_pairs_without_a_label_are_named_by_the_preparation(name: str, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, names, _ = MINIATURES[name]
    dataset = DATASETS[name](ROOT)
    folders = build(workspace / "made")
    missing = dataset.sources(*folders)[-1]
    missing.label.unlink()
    with pytest.raises(UserError, match=f"1 of {sum(map(len, names.values()))} pairs are bad"):
        preparation.prepare(dataset, name, *folders)
    assert f"{missing.name}" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "bad"), [("ade20k", 151), ("cityscapes", 34), ("bdd100k", 19), ("voc2012", 21), ("cocostuff164k", 182)])
def test_ids_of_no_class_are_refused(name: str, bad: int, tmp_path: Path) -> None:
    grey(tmp_path / "label.png", [0, bad])
    with pytest.raises(UserError, match=f"has the id {bad} at row 0, column 1"):
        DATASETS[name](ROOT).label(tmp_path / "label.png")


def test_unused_coco_ids_are_refused(tmp_path: Path) -> None:
    matlab(tmp_path / "hat.mat", S=np.full(SIZE, 26, np.uint8))
    with pytest.raises(UserError, match="has the id 26"):
        DATASETS["cocostuff10k"](ROOT).label(tmp_path / "hat.mat")


@pytest.mark.parametrize(("content", "message"), [(b"MATLAB 5.0 MAT-file, cut", "does not decode"), (None, "does not exist")])
def test_damaged_matlab_files_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "label.mat"
    if content is not None:
        path.write_bytes(content)
    for name in ("voc2012", "pascal_context", "cocostuff10k"):
        with pytest.raises(UserError, match=message):
            DATASETS[name](ROOT).label(path)


def test_small_matlab_files_of_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    zeros = np.zeros((2000, 1000), np.uint8)
    matlab(tmp_path / "many.mat", S=zeros, LabelMap=zeros, GTcls={"Segmentation": zeros})
    assert (tmp_path / "many.mat").stat().st_size < 20_000
    for name in ("voc2012", "pascal_context", "cocostuff10k"):
        with pytest.raises(UserError, match=r"^claims 2,000,000 pixels, more than the 1,000,000 that can be decoded safely$"):
            DATASETS[name](ROOT).label(tmp_path / "many.mat")
    matlab(tmp_path / "other.mat", unread=zeros, S=np.ones(SIZE, np.uint8))
    assert (DATASETS["cocostuff10k"](ROOT).label(tmp_path / "other.mat") == 0).all()


def test_context_comes_from_either_archive(tmp_path: Path) -> None:
    voc, labels = pascal_context(tmp_path)
    for path in labels.rglob("*.mat"):
        indexed(labels / f"59_context_labels/{path.stem}.png", [0, 1, 59])
        path.unlink()
    dataset = DATASETS["pascal_context"](ROOT, labels="59")
    assert dataset.label(dataset.sources(voc, labels)[0].label).ravel()[:3].tolist() == [V, 0, 58]
    assert [archive.name for archive in dataset.archives] == ["VOCtrainval_03-May-2010.tar", "59_context_labels.tar.gz"]


def test_voc_without_sbd_has_its_own_split(tmp_path: Path) -> None:
    dataset = DATASETS["voc2012"](ROOT, augmented=False)
    assert [archive.name for archive in dataset.archives] == ["VOCtrainval_11-May-2012.tar"]
    assert [source.name for source in dataset.sources(voc2012(tmp_path)[0]) if source.split == "train"] == ["2007_000032"]


def test_archives_are_fetched_extracted_and_prepared_by_the_stages(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two archives of two kinds from a folder that the user names, through download and prepare."""
    folder = project.folder / "given"
    voc, sbd = voc2012(project.folder / "made")
    dataset_type: Any = DATASETS["voc2012"]
    unchecked = [replace(archive, size=None, sha256=None, sha1=None, md5=None) for archive in dataset_type(ROOT).archives]
    monkeypatch.setattr("pipeline.datasets.voc2012.VOC", unchecked[0])
    monkeypatch.setattr("pipeline.datasets.voc2012.SBD", unchecked[1])
    folder.mkdir()
    for path, archive, mode in ((voc, unchecked[0], "w"), (sbd, unchecked[1], "w:gz")):
        with tarfile.open(folder / archive.name, mode) as file:
            file.add(path, ".")
    monkeypatch.setenv("DATA_ARCHIVES", str(folder))
    project.params["data"] = {key: TINY["data"][key] for key in ("crop", "scale", "ratio_base", "jitter")}
    project.params["data"] |= {"dataset": "voc2012", "root": "pipeline/datasets/voc2012.py"}
    assert project.stage("download") == 0
    assert project.stage("prepare") == 0
    prepared = json.loads((project.folder / "data/prepared.json").read_text())
    assert {split: len(pairs) for split, pairs in prepared["splits"].items()} == {"train": 3, "val": 2}


def test_another_archive_under_the_right_name_is_called_by_it(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = project.folder / "given"
    given.mkdir()
    for content in ("cats/readme.txt", "CamVid/train.txt"):
        with zipfile.ZipFile(given / "camvid.zip", "w") as file:
            file.writestr(content, "hello")
        monkeypatch.setenv("DATA_ARCHIVES", str(given))
        project.params["data"] = {key: TINY["data"][key] for key in ("crop", "scale", "ratio_base", "jitter")}
        project.params["data"] |= {"dataset": "camvid", "root": "pipeline/datasets/camvid.py"}
        assert project.stage("download", "--accept", "camvid.zip") == 0
        capsys.readouterr()
        assert project.stage("prepare") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("(this folder is what was in camvid.zip: is it another archive of that name?)")


@pytest.mark.parametrize(("name", "words"), [
    ("bdd100k", ["bdd100k_images_10k.zip (1.1 GB) and bdd100k_sem_seg_labels_trainval.zip (419 MB) are not", "the licence at bdd100k.com"]),
    ("cityscapes", ["leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) are not in", "CITYSCAPES_PASSWORD",
                    "https://www.cityscapes-dataset.com/downloads/"]),
    ("kitti", ["data_semantics.zip (CC BY-NC-SA) is not in", "https://www.cvlibs.net/datasets/kitti"]),
])  # fmt: skip
def test_gated_archives_say_where_to_get_them_all(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    monkeypatch.delenv("CITYSCAPES_USERNAME", raising=False)
    project.params["data"] = {key: TINY["data"][key] for key in ("crop", "scale", "ratio_base", "jitter")}
    project.params["data"] |= {"dataset": name, "root": f"pipeline/datasets/{name}.py"}
    assert project.stage("download") == 2
    (said,) = capsys.readouterr().err.splitlines()
    for part in (*words, "into data/archives, or into any folder and set DATA_ARCHIVES to that folder"):
        assert part in said
    (project.folder / "given").mkdir()  # one of two archives is there: the other one is asked for
    dataset: Any = DATASETS[name](ROOT)
    (project.folder / "given" / dataset.archives[0].name).write_bytes(b"PK")
    monkeypatch.setenv("DATA_ARCHIVES", "given")
    assert project.stage("download") == 2
    said = capsys.readouterr().err
    assert (f"error: {dataset.archives[1].name} " in said) if len(dataset.archives) > 1 else ("given/data_semantics.zip is" in said)


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


def sources_of(name: str, archive: Path) -> list[Source]:
    with zipfile.ZipFile(archive) as file:
        file.extractall(archive.parent / name)
    return list(datasets.DATASETS[name](ROOT).sources(archive.parent / name))


def test_a_copy_with_other_folders_above_is_read(tmp_path: Path) -> None:
    ade20k(tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "copy.zip", "w") as file:
        for path in sorted((tmp_path / "made").rglob("*.*")):
            file.write(path, Path("my/copy") / path.relative_to(tmp_path / "made"))
    assert [source.name for source in sources_of("ade20k", tmp_path / "copy.zip")] == MINIATURES["ade20k"][1]["train"] + [
        "ADE_val_00000001"
    ]


def test_every_dataset_names_its_options_strictly(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.params["data"] = {key: TINY["data"][key] for key in ("crop", "scale", "ratio_base", "jitter")}
    project.params["data"] |= {"dataset": "pascal_context", "root": "pipeline/datasets/pascal_context.py", "labels": 59}
    assert yaml.safe_load("59") == 59
    assert project.stage("download") == 2
    assert "data.labels" in capsys.readouterr().err
