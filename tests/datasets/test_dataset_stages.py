"""The public datasets through the stages: archives that are fetched, mistaken or gated, and their options."""

import json
import tarfile
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import yaml
from makers.miniatures import ROOT, voc2012
from makers.project import TINY, Project

from pipeline.datasets import DATASETS


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


def test_every_dataset_names_its_options_strictly(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.params["data"] = {key: TINY["data"][key] for key in ("crop", "scale", "ratio_base", "jitter")}
    project.params["data"] |= {"dataset": "pascal_context", "root": "pipeline/datasets/pascal_context.py", "labels": 59}
    assert yaml.safe_load("59") == 59
    assert project.stage("download") == 2
    assert "data.labels" in capsys.readouterr().err
