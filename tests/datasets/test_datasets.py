"""Readers of the public datasets, each on a miniature archive in the real one's layout."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from makers.miniatures import MINIATURES, ROOT, SIZE, V, ade20k, grey, indexed, matlab, pascal_context, voc2012
from PIL import Image

from pipeline import datasets
from pipeline.datasets import DATASETS, Source
from pipeline.ground.errors import UserError
from pipeline.preparation import pairs as preparation


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
