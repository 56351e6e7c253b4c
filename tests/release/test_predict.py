"""Predictions on images of one's own: the same as evaluation's, whatever the image, and bad ones are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.project import Project
from PIL import Image

from pipeline.data import prepared
from pipeline.evaluation import inference
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.release import predictor
from pipeline.release.predictor import Predictor
from pipeline.settings.schema import Part
from pipeline.superpixels.slic import label_map

CLASSES = 9


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained project as the current folder."""
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def predict(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """What `python -m stages.predict` does."""
    made = Project(project)
    made.params["train"]["iterations"] = 4

    def command(*arguments: object) -> int:
        try:
            return made.stage("predict", *map(str, arguments))
        except SystemExit as ended:
            return int(ended.code or 0)

    return command


def images() -> dict[str, Path]:
    """The files of the split val in the store, by their names."""
    return {pair.name: store.path("images", pair.image) for pair in prepared.pairs(prepared.read(), "val")}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


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


def test_a_large_image_goes_by_windows_and_its_superpixels_by_blocks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "LEAST", 512)
    made = Predictor.load("ecrf")
    seen: list[tuple[int, ...]] = []
    made.network.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 900, 3), np.uint8))
    monkeypatch.setattr(predictor, "WHOLE", 900 * 70)
    assert made(picture).shape == (70, 900)
    assert seen == [(1, 3, 70, 900)]
    monkeypatch.setattr(predictor, "WHOLE", 900 * 70 - 1)
    assert made(picture).shape == (70, 900)
    assert seen[1:] == [(1, 3, 512, 512)] * 2  # at 0 and 388
    monkeypatch.setattr(predictor, "BLOCK", 400)
    assert made.superpixels is not None
    labels_HW = predictor.superpixels_of(picture, made.superpixels)
    with monkeypatch.context() as whole:  # as the stage makes them, where the network takes the image at once
        whole.setattr(predictor, "WHOLE", 900 * 70)
        np.testing.assert_array_equal(predictor.superpixels_of(picture, made.superpixels), label_map(np.asarray(picture), made.superpixels))
    first = label_map(np.asarray(picture)[:, :300], made.superpixels)
    np.testing.assert_array_equal(labels_HW[:, :300], first)
    assert labels_HW[:, 300:].min() == first.max() + 1
    assert len(np.unique(labels_HW)) == labels_HW.max() + 1


def test_odd_images_are_predicted_and_bad_ones_named(
    predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    colour = Image.fromarray(pixels)
    colour.convert("L").save(folder / "grey.png")
    colour.convert("RGBA").save(folder / "deeper/alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    turned = colour.getexif()
    turned[0x0112] = 6  # to be turned by a quarter
    colour.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(pixels[:1, :1]).save(folder / "pixel.png")
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image either, and not taken for one")
    assert predict("--run", "ecrf", "--out", tmp_path / "out", folder) == 1
    said = capfd.readouterr()
    assert sorted(line for line in said.err.splitlines() if line.startswith("skipped: ")) == [
        f"skipped: {folder / 'empty.jpg'}: is empty (0 bytes)",
        f"skipped: {folder / 'text.png'}: does not decode (it is no image, or one of a kind that is not known)",
    ]
    assert "5 of 7 images predicted" in said.out
    sizes = {path.relative_to(tmp_path / "out").as_posix(): read(path).shape for path in (tmp_path / "out").rglob("*.labels.png")}
    assert sizes == {
        "grey.labels.png": (40, 60), "deeper/alpha.labels.png": (40, 60), "deep.labels.png": (40, 60),
        "turned.labels.png": (60, 40), "pixel.labels.png": (1, 1),
    }  # fmt: skip
    assert not list((tmp_path / "out").rglob(".*"))


def test_every_kind_of_file_gives_its_upright_pixels(predict: Callable[..., int], tmp_path: Path) -> None:
    """Palette, CMYK and an animation's first frame are predicted as the RGB image that they show."""
    folder = tmp_path / "mine"
    folder.mkdir()
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    shown = {"palette.png": colour.quantize(64), "cmyk.tif": colour.convert("CMYK"), "moving.gif": colour.quantize(32)}
    for name, image in shown.items():
        more = {"save_all": True, "append_images": [Image.new("P", (60, 40))]} if name == "moving.gif" else {}
        image.save(folder / name, **more)
    assert predict("--run", "fcn", "--out", tmp_path / "out", folder) == 0
    made = Predictor.load("fcn")
    for name, image in shown.items():
        np.testing.assert_array_equal(read(tmp_path / f"out/{Path(name).stem}.labels.png"), made(image.convert("RGB")))


def test_photographs_are_turned_upright(project: Path, tmp_path: Path) -> None:
    """EXIF's eight orientations: which side of the scene the stored first row and first column are."""
    scene = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    stored = {
        1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1],
        5: scene.swapaxes(0, 1), 6: np.rot90(scene), 7: np.rot90(scene.swapaxes(0, 1), 2), 8: np.rot90(scene, -1),
    }  # fmt: skip
    for number, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "x.png", exif=exif)
        np.testing.assert_array_equal(np.asarray(Predictor.image(tmp_path / "x.png")), scene)


def test_an_overlay_has_no_profile_of_other_colours(predict: Callable[..., int], tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 90, 90, 0)).save(tmp_path / "inks.jpg", icc_profile=b"a profile of inks")
    assert predict("--run", "fcn", "--out", tmp_path / "out", tmp_path / "inks.jpg") == 0
    with Image.open(tmp_path / "out/inks.overlay.png") as overlay:
        assert overlay.mode == "RGB"
        assert "icc_profile" not in overlay.info


def test_images_beyond_pillows_limit_open_from_python_too(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 50)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert Predictor.load("fcn")(tmp_path / "x.png").shape == (50, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


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


def test_truncated_and_lying_files_are_skipped(predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder that a pattern matches is looked into; the good image in it is predicted all the same."""
    from makers.odd_files import claiming

    (folder := tmp_path / "mine").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "good.jpg")
    (folder / "short.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-900])
    (folder / "bomb.png").write_bytes(claiming("png", 40_000))
    assert predict("--run", "fcn", "--out", tmp_path / "out", str(tmp_path / "m*")) == 1
    said = capfd.readouterr()
    assert "1 of 3 images predicted" in said.out
    skipped = {Path(line.split(": ")[1]).name: line for line in said.err.splitlines() if line.startswith("skipped: ")}
    assert skipped.keys() == {"short.jpg", "bomb.png"}
    assert "does not decode (image file is truncated" in skipped["short.jpg"]
    assert "claims more than 1,073,741,824 pixels" in skipped["bomb.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.labels.png", "good.overlay.png", "legend.png"]


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


@pytest.mark.parametrize("protocol", [{}, {"scales": (0.75, 1.0), "flip": True}, {"short_side": 50, "flip": True}])
def test_rows_give_what_the_whole_map_gives(protocol: dict[str, Any], project: Path) -> None:
    """Strips of all views at once against one view after the other, with superpixels and probabilities."""
    made = Predictor.load("ecrf", window=(32, 40), **protocol)
    picture = made.image(next(iter(images().values())))
    assert made.superpixels is not None
    superpixels_HW = predictor.superpixels_of(picture, made.superpixels)
    kept: list[list[tuple[int, torch.Tensor]]] = [[], []]
    wanted = inference.predict(
        made.network, picture, superpixels_HW, made.protocol, CLASSES, lambda start, part: kept[0].append((start, part.clone()))
    )
    windows: list[tuple[str, int, int]] = []
    found_HW = made(picture, lambda start, part: kept[1].append((start, part.clone())), lambda *told: windows.append(told))
    np.testing.assert_array_equal(found_HW, wanted.multi_HW)
    assert [start for start, _ in kept[0]] == [start for start, _ in kept[1]]
    for (_, one), (_, other) in zip(*kept, strict=True):
        torch.testing.assert_close(one, other)
    done = [count for what, count, _ in windows if what == "windows"]
    assert done == list(range(1, windows[-1][2] + 1))


def test_memory_of_a_large_image_does_not_grow_with_its_classes(tmp_path: Path) -> None:
    """60 classes at 2000 x 3000, four views: a map of all would take 1.4 GB; the process grows by less than a third of that."""
    import subprocess
    import sys

    script = """
import resource, numpy, torch
from PIL import Image
from models.parts.layers import Output
from pipeline.evaluation.inference import Network
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Evaluation
from pipeline.release.streaming import predict_by_rows

class Quick(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 60, 1, stride=4)
    def forward(self, image, superpixels=None):
        return Output(self.conv(image), image, {})

torch.set_num_threads(1)
picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (2000, 3000, 3), numpy.uint8))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
protocol = Evaluation(name="x", of="x", split="", mode="slide", window=(512, 512), stride=(448, 448), scales=(0.5, 1.0), flip=True,
                      launch=Launch(name="x", backend="local"))
before = peak()
rows = []
predict_by_rows(Network(Quick().eval(), (0.5, 0.5, 0.5)), picture, None, protocol, 60, lambda start, part: rows.append(part.shape[1]))
assert sum(rows) == 2000
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout) < 450


def test_names_that_meet_keep_their_suffix(predict: Callable[..., int], tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    assert predict("--run", "fcn", "--out", tmp_path / "out", str(tmp_path / "*.*g")) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.labels.png")) == ["a.jpg.labels.png", "a.png.labels.png", "b.labels.png"]


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
