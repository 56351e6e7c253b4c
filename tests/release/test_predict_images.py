"""Images of every kind are predicted upright and in their colours, and bad ones are named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makers.predictions import read
from PIL import Image

from pipeline.release.predictor import Predictor


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
