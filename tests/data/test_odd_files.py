"""Odd files on the way from a folder to a batch: taken with the right pixels, or refused in one line that names the file."""

import errno
import io
import re
import struct
import subprocess
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.batches import batches, config
from makers.odd_files import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, claiming, overlapping_zip, png, tiff
from makers.stored import textured
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from pipeline.data import prepared
from pipeline.data.images import rgb
from pipeline.data.prepared import Prepared
from pipeline.datasets.folder import Folder
from pipeline.download import extraction
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.preparation import pairs as preparation

SHAPE = HEIGHT, WIDTH = 11, 13
IDS = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(SHAPE) % 3
COLOURS = {"road": [128, 64, 128], "sky": "#4682b4", "tree": [107, 142, 35]}
COLOURED = np.array([(128, 64, 128), (0x46, 0x82, 0xB4), (107, 142, 35)], np.uint8)[IDS]


def values(bits: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 2**bits, (*SHAPE, *channels))


def grey(shades_HW: np.ndarray) -> np.ndarray:
    return np.repeat(shades_HW[..., None], 3, axis=-1)


def images() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """A file's name, its content, and the pixels that it must become."""
    for interlaced in (False, True):
        kind = "interlaced" if interlaced else "plain"
        for bits in (1, 2, 4, 8, 16):
            shades = values(bits)
            expected = grey(shades >> 8 if bits == 16 else shades * (255 // (2**bits - 1)))
            yield f"{kind}-grey-{bits}.png", png(shades, bits, GREY, interlaced=interlaced), expected
            key = struct.pack(">H", int(shades[0, 0]))
            yield f"{kind}-grey-{bits}-key.png", png(shades, bits, GREY, interlaced=interlaced, alpha=key), expected
        for bits in (8, 16):
            for name, colour, channels in (("rgb", RGB, 3), ("grey-alpha", GREY_ALPHA, 2), ("rgba", RGBA, 4)):
                pixels = values(bits, channels)
                upper = pixels >> (bits - 8)
                expected = grey(upper[..., 0]) if colour == GREY_ALPHA else upper[..., :3]
                yield f"{kind}-{name}-{bits}.png", png(pixels, bits, colour, interlaced=interlaced), expected
        for bits in (1, 2, 4, 8):
            palette, places = np.random.default_rng(0).integers(0, 256, (2**bits, 3)), values(bits)
            made = png(places, bits, PALETTE, interlaced=interlaced, palette=palette)
            yield f"{kind}-palette-{bits}.png", made, palette[places]
            faint = png(places, bits, PALETTE, interlaced=interlaced, palette=palette, alpha=bytes(range(0, 2**bits, 2)))
            yield f"{kind}-palette-{bits}-transparent.png", faint, palette[places]
    photograph = io.BytesIO()
    Image.fromarray(textured(0, *SHAPE)).save(photograph, "JPEG", quality=90)
    content = photograph.getvalue()
    yield "photograph-called.png", content, independently(content)
    inked = io.BytesIO()
    Image.fromarray(textured(1, HEIGHT, WIDTH)).convert("CMYK").save(inked, "JPEG", quality=95)
    yield "cmyk.jpg", inked.getvalue(), independently(inked.getvalue())


def independently(jpeg: bytes) -> np.ndarray:
    """A JPEG's pixels as torchvision reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision will leave decoding to torchcodec
        return decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), ImageReadMode.RGB).permute(1, 2, 0).numpy()


ODD = {name: (content, expected) for name, content, expected in images()}


def write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def put_mask(folder: Path, name: str, array: np.ndarray = IDS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name)


def prepare(root: Path = Path("own"), classes=("a", "b", "c"), **options) -> Prepared:
    classes = classes if isinstance(classes, dict) else list(classes)
    published, _ = preparation.prepare(Folder(root, classes=classes, **options), "folder", Path("unused"))
    prepared.write(published)
    return published


def refused(capsys: pytest.CaptureFixture[str], **options) -> str:
    """The one line that names the one bad file of `own`."""
    with pytest.raises(UserError, match=r"1 of \d+ pairs are bad"):
        prepare(**options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("own/")]
    assert not store.PREPARED.exists()
    return line


@pytest.fixture
def own(workspace: Path) -> Path:
    """Three good pairs."""
    for number in range(3):
        content = png(values(8, 3), 8, RGB)
        write(workspace / "own/images", f"good-{number}.png", content)
        put_mask(workspace / "own/masks", f"good-{number}.png")
    return workspace / "own"


@pytest.mark.parametrize("decoded", [False, True])
def test_odd_images_come_into_batches_with_the_right_pixels(workspace: Path, decoded: bool):
    for name, (content, _) in ODD.items():
        write(workspace / "own/images", name, content)
        put_mask(workspace / "own/masks", f"{Path(name).stem}.png")
    published = prepare(val_share=0.01)
    assert sum(map(len, published.splits.values())) == len(ODD) >= 50
    expected = {name.rpartition(".")[0]: pixels for name, (_, pixels) in ODD.items()}
    run = config(
        superpixels="none",
        superpixel_set=None,
        data={"jitter": None, "scale": (1.0, 1.0), "crop": SHAPE},
        train={"iterations": 30},
        launch={"decoded": decoded},
    )
    seen = set()
    for batch in batches(run, published):
        for name, image, labels in zip(batch.names, batch.image, batch.labels, strict=True):
            flipped = not torch.equal(labels, torch.from_numpy(IDS.astype(np.int64)))
            pixels = (image.flip(-1) if flipped else image).permute(1, 2, 0).numpy() * 255
            assert np.abs(pixels - expected[name]).max() < (3.5 if name in ("cmyk", "photograph-called") else 1e-4), name
            seen.add(name)
    assert seen == {pair.name for pair in published.splits["train"]}


def test_inks_become_colours(tmp_path: Path):
    inks = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 0): (255, 255, 255)}
    for ink, colour in inks.items():
        Image.new("CMYK", (8, 8), ink).save(tmp_path / "x.jpg", quality=100)
        assert np.abs(np.asarray(rgb(tmp_path / "x.jpg")).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour", "array", "classes"), [
    (8, GREY, IDS, ("a", "b", "c")),
    (16, GREY, IDS, ("a", "b", "c")),
    (16, GREY, IDS.astype(int) * 1000, {"a": 0, "b": 1000, "c": 2000}),
    (8, GREY_ALPHA, np.stack([IDS, 200 - IDS], -1), ("a", "b", "c")),
    (2, PALETTE, IDS, ("a", "b", "c")),
    (4, PALETTE, IDS, ("a", "b", "c")),
    (8, RGB, COLOURED, COLOURS),
])  # fmt: skip
def test_odd_masks_keep_their_ids(workspace: Path, bits: int, colour: int, array: np.ndarray, classes, interlaced: bool):
    palette = np.random.default_rng(0).integers(0, 256, (3, 3)) if colour == PALETTE else None
    content = png(array, bits, colour, interlaced=interlaced, palette=palette, alpha=b"\0\x80" if colour == PALETTE else b"")
    path = write(workspace, "mask.png", content)
    names = classes if isinstance(classes, dict) else list(classes)
    assert np.array_equal(Folder(workspace, classes=names).label(path), IDS)


@pytest.mark.parametrize(("content", "reason"), [
    (png(IDS[..., None].repeat(3, -1), 16, RGB), "16 bits in each channel"),  # Pillow reads 0 everywhere
    (png(np.stack([IDS, IDS], -1), 16, GREY_ALPHA), "16 bits in each channel"),
    (png(IDS, 4, GREY), "4 bits in each pixel"),  # Pillow reads 0, 17, 34
    (png(IDS, 2, GREY, interlaced=True), "2 bits in each pixel"),
    (b"P5 13 11 18\n" + IDS.tobytes(), "values up to 18 instead of 255"),
    (b"P6 13 11 65535\n" + COLOURED.astype(">u2").tobytes(), "values up to 65535 instead of 255"),
    (tiff(np.stack([IDS] * 3)), "channels of 16 bits lie one behind the other"),
    (b"", "is empty (0 bytes)"),
    (claiming("png", 100_000), "claims more than 89,478,485 pixels"),
])  # fmt: skip
def test_masks_that_would_get_other_ids_are_refused(own: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str):
    write(own / "masks", "good-1.png", content)
    line = refused(capsys)
    assert line.startswith("own/masks/good-1.png: ")
    assert reason in line


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_floating_point_files_are_refused(own: Path, capsys: pytest.CaptureFixture[str], folder: str, kind: type):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(own / folder / "good-1.tif", IDS.astype(kind))
    (own / folder / "good-1.png").unlink()
    line = refused(capsys)
    assert line.startswith(f"own/{folder}/good-1.tif: ")
    assert "mode F" in line or "floating-point" in line or "does not decode" in line


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("empty.jpg", b"", "is empty (0 bytes)"),
    ("huge.png", claiming("png", 100_000), "claims more than 89,478,485 pixels"),
    ("huge.bmp", claiming("bmp", 100_000), "claims more than 89,478,485 pixels"),
    ("huge.tif", claiming("tif", 100_000), "claims more than 89,478,485 pixels"),
    ("huge.ppm", claiming("ppm", 100_000), "claims more than 89,478,485 pixels"),
    ("cut.png", png(values(8, 3), 8, RGB)[:200], "does not decode"),
    ("planar.tif", tiff(np.stack([values(16)] * 3)), "channels of 16 bits lie one behind the other"),
    ("novel.png", png(values(8), 8, GREY, text=b"k\0\0" + zlib.compress(bytes(100 << 20))), "does not decode"),
])  # fmt: skip
def test_images_that_are_refused(own: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, reason: str):
    path = write(own / "images", name, content)
    put_mask(own / "masks", f"{path.stem}.png")
    line = refused(capsys)
    assert line.startswith(f"own/images/{name}: ")
    assert reason in line
    assert line.count(name) == 1


def test_of_many_files_the_broken_ones_are_all_named_in_order(workspace: Path, capsys: pytest.CaptureFixture[str]):
    """With processes, which finish in another order; the first broken one takes longest."""
    for split, numbers in (("train", range(50)), ("val", range(50, 60))):
        for number in numbers:
            write(workspace / f"own/{split}/images", f"{number:05}.png", png(values(8, 3) + number & 255, 8, RGB))
            put_mask(workspace / f"own/{split}/masks", f"{number:05}.png")
    large = io.BytesIO()
    Image.fromarray(textured(0, 2000, 3000)).save(large, "PNG")
    write(workspace / "own/train/images", "00003.png", large.getvalue()[:-5000])
    write(workspace / "own/train/images", "00031.png", b"")
    write(workspace / "own/val/masks", "00055.png", b"no mask")
    with pytest.raises(UserError, match=r"3 of 60 pairs are bad \(named above\)"):
        prepare()
    found = re.findall(r"^(own/\S+?): (.*)$", capsys.readouterr().err, re.MULTILINE)
    assert [path for path, _ in found] == ["own/train/images/00003.png", "own/train/images/00031.png", "own/val/masks/00055.png"]
    assert [reason.partition(" (")[0] for _, reason in found] == ["does not decode", "is empty", "does not decode"]
    assert not store.PREPARED.exists()


@pytest.mark.parametrize("make", ["zip", "tar", "sparse"])
def test_a_small_archive_of_terabytes_is_refused_at_once(tmp_path: Path, make: str):
    archive = tmp_path / "bomb"
    if make == "zip":
        claimed = overlapping_zip(archive, 1000)
    else:
        entry = tarfile.TarInfo("x")
        claimed = entry.size = 9 << 40
        header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
        if make == "sparse":  # nothing is stored of what is 9 TB when it is unpacked
            header[124:136], header[156:157], header[386:482] = b"00000000000\0", b"S", bytes(96)
            header[483:495] = tarfile.itn(claimed, 12, tarfile.GNU_FORMAT)
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
        archive.write_bytes(bytes(header) + bytes(1024))
    assert claimed > 4e12
    assert archive.stat().st_size < 100_000
    for action in (extraction.verify, lambda path: extraction.extract(path, tmp_path / "out")):
        with pytest.raises(UserError, match=r"bomb unpacks to more than [\d.]+ GB, .*refused as a bomb"):
            action(archive)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["bomb"]


def tarred(path: Path, files: int) -> Path:
    with tarfile.open(path, "w") as container:
        for number in range(files):
            entry = tarfile.TarInfo(f"d/{number}")
            entry.size = 3
            container.addfile(entry, io.BytesIO(b"abc"))
    return path


def test_what_a_killed_extraction_left_does_not_come_into_the_next(workspace: Path):
    archive = tarred(workspace / "a.tar", 5)
    write(workspace / ".out.partial/d", "stale", b"x")
    extraction.extract(archive, workspace / "out")
    assert sorted(path.name for path in (workspace / "out/d").iterdir()) == list("01234")
    assert not (workspace / ".out.partial").exists()


def test_an_extracted_folder_that_lost_files_is_not_a_smaller_dataset(workspace: Path):
    archive = tarred(workspace / "a.tar", 5)
    digest = extraction.digests(archive)["sha256"]
    folder = extraction.extracted(archive, digest)
    write(folder, "note.txt", b"of the user")
    assert extraction.extracted(archive, digest) == folder
    for name in ("1", "3"):
        (folder / "d" / name).unlink()
    with pytest.raises(UserError, match=rf"{folder} has 4 of the 5 files that were extracted: delete it and run this again"):
        extraction.extracted(archive, digest)
    write(folder / "d", "1", b"abc")
    write(folder / "d", "3", b"a")
    (folder / "note.txt").unlink()
    with pytest.raises(UserError, match=rf"{folder} has 13 of the 15 bytes that were extracted: delete it"):
        extraction.extracted(archive, digest)
    subprocess.run(["rm", "-r", folder], check=True)
    assert len(list((extraction.extracted(archive, digest) / "d").iterdir())) == 5


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        (disk / "x").write_bytes(b"")
    assert caught.value.errno == errno.EROFS


def test_archives_and_images_on_a_read_only_disk_are_read_from_there(disk: Path, monkeypatch: pytest.MonkeyPatch):
    from pipeline.download import archives

    tarred(disk / "a.tar", 5)
    write(disk / "own/images", "one.png", png(values(8, 3), 8, RGB))
    write(disk / "own/images", "two.png", png(values(8, 3), 8, RGB, interlaced=True))
    for name in ("one.png", "two.png"):
        put_mask(disk / "own/masks", name)
    make_read_only(disk)
    Path("data").mkdir()
    Path("data/archives").symlink_to(disk)
    with pytest.raises(UserError, match=r"cannot write data/archives/.lock: Read-only file system: .* set DATA_ARCHIVES$"):
        archives.fetch(archives.Archive(name="a.tar"))
    Path("data/archives").unlink()
    monkeypatch.setenv("DATA_ARCHIVES", str(disk))
    fetched = archives.fetch(archives.Archive(name="a.tar"))
    assert fetched.path == disk / "a.tar"
    assert len(list((extraction.extracted(fetched.path, fetched.sha256) / "d").iterdir())) == 5
    assert {split: len(pairs) for split, pairs in prepare(disk / "own").splits.items()} == {"train": 1, "val": 1}


def test_a_store_on_a_read_only_disk_is_one_line(own: Path, disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATA_STORE", str(disk / "store"))
    archive = tarred(own.parent / "a.tar", 5)
    published = prepare()
    make_read_only(disk)
    with pytest.raises(UserError, match=r"cannot write .*disk/store/prepare.lock: Read-only file system"):
        prepare()
    with pytest.raises(UserError, match=r"cannot (write|extract) .*Read-only file system"):
        extraction.extracted(archive, extraction.digests(archive)["sha256"])
    run = config(superpixels="none", superpixel_set=None)
    assert len(next(batches(run, published)).names) == 4  # who only trains needs not write there
    with pytest.raises(UserError, match=r"cannot write .*decoded.*Read-only file system: .*`decoded: false`"):
        batches(config(superpixels="none", superpixel_set=None, launch={"decoded": True}), published)
