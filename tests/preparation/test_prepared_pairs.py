"""Images of every kind become upright RGB, and bad pairs are listed, and nothing is published."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from makers.own_pairs import RNG, command, prepare
from PIL import Image

from pipeline.data import images, prepared
from pipeline.datasets.folder import Folder
from pipeline.datasets.scenes import Scenes
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.preparation import pairs as preparation


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_all_bad_files_are_listed_and_nothing_is_published(own: Path):
    images, masks = own / "images", own / "masks"
    (images / "0.png").write_bytes(b"")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(images / "long.jpg")
    (images / "1.png").write_bytes((images / "long.jpg").read_bytes()[:1500])
    (images / "long.jpg").unlink()
    (images / "2.png").write_bytes(png_header(100_000, 100_000))
    Image.fromarray(np.zeros((8, 13), np.uint8)).save(masks / "3.png")
    Image.fromarray(np.full((8, 12), 7, np.uint8)).save(masks / "4.png")
    (masks / "5.png").write_text("not an image")
    result = command()
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert lines[-1] == "error: 6 of 6 pairs are bad (named above): mend or remove them; nothing was published"
    faults = [line for line in lines if line.startswith("own/")]
    reasons = (
        "is empty (0 bytes)",
        "does not decode (image file is truncated",
        "claims more than 89,478,485 pixels",
        "is 13 x 8, its image 3.png 12 x 8",
        "ids that are no class's: 7 (96 pixels)",
        "does not decode (it is no image",
    )
    assert len(faults) == 6
    for reason in reasons:
        assert sum(reason in line for line in faults) == 1
    assert "Traceback" not in result.stderr
    assert not store.PREPARED.exists()


def test_one_bad_pair_among_good_ones(own: Path, capsys):
    published = prepare()
    before = store.PREPARED.read_bytes()
    (own / "masks" / "2.png").write_bytes(b"x")
    with pytest.raises(UserError, match="1 of 6 pairs are bad"):
        prepare()
    assert capsys.readouterr().err.count("own/masks/2.png: does not decode") == 1
    assert store.PREPARED.read_bytes() == before
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(own / "masks" / "2.png")
    assert prepare() != published


def test_a_label_beyond_the_classes_is_refused_whatever_the_dataset_says(own: Path, monkeypatch, capsys):
    monkeypatch.setattr(Folder, "label", lambda self, path: np.full((8, 12), 2, np.uint8))
    with pytest.raises(UserError, match="6 of 6"):
        prepare()
    assert "has the ids 2, beyond the 2 classes" in capsys.readouterr().err


def test_a_wrong_suffix_is_fine(own: Path):
    image = Image.fromarray(RNG.integers(0, 256, (8, 12, 3), np.uint8))
    (own / "images" / "0.png").unlink()
    image.save(own / "images" / "0.jpg", format="PNG")
    pair = next(pair for pairs in prepare().splits.values() for pair in pairs if pair.name == "0")
    assert prepared.open_image(pair).tobytes() == image.tobytes()


def test_a_photograph_is_turned_upright(own: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = RNG.integers(0, 256, (12, 8, 3), np.uint8)
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(own / "images" / "0.png", exif=exif)
    Image.fromarray(np.zeros((12, 8), np.uint8)).save(own / "masks" / "0.png")
    pair = next(pair for pairs in prepare().splits.values() for pair in pairs if pair.name == "0")
    assert (pair.height, pair.width) == (12, 8)
    assert (np.array(prepared.open_image(pair)) == upright).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 30), (100, 100, 100)),
        ("RGBA", (1, 2, 3, 4), (1, 2, 3)),
        ("I;16", 25700, (100, 100, 100)),
        ("P", 0, (9, 8, 7)),
        ("CMYK", (0, 255, 0, 0), (255, 0, 255)),
    ],
)
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str, colour, expected):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([9, 8, 7])
    image.save(path, **({"transparency": b"\x00"} if mode == "P" else {}))
    result = images.rgb(path)
    assert result.mode == "RGB"
    assert (np.array(result) == expected).all()


def test_floating_point_images_are_refused(tmp_path: Path):
    Image.new("F", (3, 2), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match="floating-point"):
        images.rgb(tmp_path / "x.tif")


def test_a_damaged_generated_label_is_named(workspace: Path, capsys):
    dataset = Scenes(Path("unused"), train_images=2, val_images=1, height=32, width=40, seed=0)
    (source, *_) = dataset.sources(Path("drawn"))
    content = bytearray(source.label.read_bytes())
    content[50:60] = bytes(10)  # its end is there, so that it is not drawn again
    source.label.write_bytes(content)
    with pytest.raises(UserError, match="1 of 3 pairs are bad"):
        preparation.prepare(dataset, "scenes", Path("drawn"))
    assert f"{source.label}: does not decode (" in capsys.readouterr().err
    source.label.unlink()
    preparation.prepare(dataset, "scenes", Path("drawn"))


def test_clashes_and_empty_splits(own: Path, capsys):
    rows = "image,mask,split\nimages/0.png,masks/0.png,train\nimages/0.jpg,masks/1.png,train\nimages/2.png,masks/2.png,val\n"
    (own / "pairs.csv").write_text(rows)
    with pytest.raises(UserError, match=r"1 names .* are there twice in one split"):
        prepare(own / "pairs.csv")
    assert "split train has the name images_0 already" in capsys.readouterr().err
    (own / "pairs.csv").write_text("image,mask,split\nimages/0.png,masks/0.png,val\n")
    with pytest.raises(UserError, match="split train has no pairs"):
        prepare(own / "pairs.csv")
    (own / "pairs.csv").write_text(rows.replace("images/0.jpg", "images/absent.png"))
    with pytest.raises(UserError, match="1 of 3"):
        prepare(own / "pairs.csv")
    assert "images/absent.png: does not exist" in capsys.readouterr().err
