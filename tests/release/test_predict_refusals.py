"""What cannot be predicted or written is one line, and no prediction takes the place of an image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.predictions import CLASSES, images, read
from PIL import Image

from pipeline.release.predictor import Predictor


def test_predictions_never_take_the_place_of_images(predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the images' own folder, run twice; and in a folder below it, where the first run's predictions are no images."""
    (folder := tmp_path / "mine").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    assert predict("--run", "fcn", "--out", folder, folder) == 0
    before = (folder / "a.labels.png").read_bytes()
    assert predict("--run", "fcn", "--out", f"{folder}/../mine", folder) == 2
    assert "legend.png is one of the images, and a prediction would take its place" in capfd.readouterr().err
    (folder / "legend.png").unlink()
    assert predict("--run", "ecrf", "--out", folder, folder) == 2
    assert "a.labels.png is one of the images" in capfd.readouterr().err
    assert (folder / "a.labels.png").read_bytes() == before
    for path in folder.glob("a.*.png"):
        path.unlink()
    for _ in range(2):
        assert predict("--run", "fcn", "--out", folder / "seen", folder) == 0
        assert "1 of 1 images predicted" in capfd.readouterr().out
    assert sorted(path.name for path in (folder / "seen").iterdir()) == ["a.labels.png", "a.overlay.png", "legend.png"]


def test_memory_that_does_not_suffice_is_one_line(
    predict: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Predictor, "__call__", full)
    file = next(iter(images().values()))
    assert predict("--run", "fcn", "--out", tmp_path / "out", file) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line == f"error: {file}: out of GPU memory: take smaller windows (--window 512 512), fewer --scales or --device cpu"


def test_a_disk_that_fills_up_is_one_line(
    predict: Callable[..., int], disk: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk would fail every image: it stops at the first, and leaves no half file."""
    import subprocess

    subprocess.run(["mount", "-o", "remount,size=200k", disk], check=True)
    monkeypatch.chdir(project)
    picture = disk.parent / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)).save(picture)
    assert predict("--run", "fcn", "--out", disk / "out", picture, picture.with_name("big.png")) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: cannot write ")
    assert last.endswith("No space left on device")
    assert not list((disk / "out").rglob("*.tmp"))
    assert not list((disk / "out").rglob("*.overlay.png"))


def test_a_folder_that_cannot_be_written_is_one_line(
    predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert predict("--run", "fcn", "--out", tmp_path / "file/out", next(iter(images().values()))) == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith(f"error: cannot write {tmp_path / 'file/out/legend.png'}: ")
    assert predict("--run", "fcn", "--out", tmp_path / "file", next(iter(images().values()))) == 2
    assert capfd.readouterr().err.strip() == f"error: --out {tmp_path / 'file'} is a file: name a folder"


def test_a_run_that_is_not_finished_or_of_another_dataset(
    predict: Callable[..., int], project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints are no weights; another dataset's run predicts its own classes, whatever params.yaml says."""
    (half := project / "runs/half/checkpoints/abc/seed-0").mkdir(parents=True)
    (half / "step-2.pt").write_bytes(b"x")
    file = next(iter(images().values()))
    assert predict("--run", "half", "--out", tmp_path / "out", file) == 2
    assert "run half has no weights in runs/half/weights: train it first" in capfd.readouterr().err
    payload = torch.load("runs/fcn/weights/seed-0.pt", weights_only=True)
    payload["config"]["data"]["dataset"] = "camvid"
    torch.save({**payload, "classes": [f"<b>{number}</b>" for number in range(CLASSES)]}, tmp_path / "other.pt")
    assert predict("--run", tmp_path / "other.pt", "--out", tmp_path / "out", file) == 0
    np.testing.assert_array_equal(read(tmp_path / f"out/{file.stem}.labels.png"), Predictor.load("fcn")(file))


def test_two_files_of_one_name_are_both_named(predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for camera in ("left", "right"):
        (tmp_path / camera).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / camera / "a.png")
    assert predict("--run", "fcn", "--out", tmp_path / "out", str(tmp_path / "*t")) == 2
    both = f"{tmp_path}/left/a.png and {tmp_path}/right/a.png would both be called a.png"
    assert both in capfd.readouterr().err
    assert predict("--run", "fcn", "--out", tmp_path / "out", tmp_path) == 0
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.labels.png")) == ["left", "right"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "nobody", "."], "run nobody has no weights in runs/nobody/weights: train it first; runs that are finished: ecrf, fcn"),
        (["--run", "fcn", "--seed", "3", "."], "run fcn has no seed 3; it has 0"),
        (["--run", "nowhere.pt", "."], "nowhere.pt does not exist"),
        (["--run", "fcn", "no-such-file.png"], "no-such-file.png: there is no such file, folder or pattern's match"),
        (["--run", "fcn", "results/fcn.json", "--device", "cuda:9"], "device cuda:9 cannot be used"),
        (
            ["--run", "fcn", "results/fcn.json", "--device", "gpu"],
            "device gpu is unknown: cpu, cuda, or one of several GPUs, such as cuda:1",
        ),
        (["--run", "fcn", "results", "--scales", "0"], "must be positive"),
        (["--run", "fcn", "results", "--scales", "1", "nan"], "must be positive"),
        (["--run", "fcn", "data/superpixels"], "no images in data/superpixels"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict(*arguments, "--out", tmp_path / "out") == 2
    line = capfd.readouterr().err.strip()
    assert line.startswith("error: ")
    assert words in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()
