import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.data import images, prepared
from pipeline.datasets import DATASETS
from pipeline.datasets.folder import Folder
from pipeline.datasets.scenes import Scenes
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.preparation import pairs as preparation
from pipeline.preparation import summary

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


@pytest.fixture
def own(workspace: Path) -> Path:
    """Six pairs of 8 x 12 in `own`: classes a and b."""
    for place in range(6):
        (workspace / "own" / "images").mkdir(parents=True, exist_ok=True)
        (workspace / "own" / "masks").mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 12, 3), np.uint8)).save(workspace / "own" / "images" / f"{place}.png")
        Image.fromarray(RNG.integers(0, 2, (8, 12), np.uint8)).save(workspace / "own" / "masks" / f"{place}.png")
    return workspace / "own"


def prepare(root: Path = Path("own"), **options) -> prepared.Prepared:
    published, _ = preparation.prepare(Folder(root, classes=["a", "b"], **options), "folder", Path("unused"))
    prepared.write(published)
    return published


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m stages.prepare` in the current folder, on the folder dataset."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] = {key: params["data"][key] for key in ("crop", "scale", "jitter")}
    params["data"] |= {"dataset": "folder", "root": "own", "classes": ["a", "b"]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([sys.executable, "-m", "stages.prepare", *arguments], env=environment, capture_output=True, text=True, timeout=60)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_the_command_publishes_what_the_store_has(own: Path):
    result = command()
    assert result.returncode == 0, result.stderr
    assert "train: 5 pairs of 8 x 12" in result.stdout
    published = prepared.read()
    assert (published.dataset, published.classes, len(published.palette)) == ("folder", ("a", "b"), 2)
    assert {split: len(pairs) for split, pairs in published.splits.items()} == {"train": 5, "val": 1}
    for pair in (*published.splits["train"], *published.splits["val"]):
        with Image.open(own / "images" / f"{pair.name}.png") as image, Image.open(own / "masks" / f"{pair.name}.png") as mask:
            assert (np.array(prepared.open_image(pair)) == np.array(image)).all()
            assert (prepared.open_label(pair) == np.array(mask)).all()
        for kind, name in (("images", pair.image), ("labels", pair.label)):
            assert files.sha256(store.path(kind, name)) == name.partition(".")[0]


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("stray", 2), ("--stray", 2)])
def test_an_argument_does_not_start_the_command(own: Path, argument: str, status: int):
    result = command(argument)
    assert result.returncode == status
    assert "usage: uv run python -m stages.prepare" in result.stdout + result.stderr
    assert not store.PREPARED.exists()


def test_equal_content_makes_equal_bytes(own: Path):
    prepare()
    first = store.PREPARED.read_bytes()
    shutil.rmtree("data")
    shutil.copytree("own", "moved")
    shutil.rmtree("own")
    prepare(Path("moved"))
    assert store.PREPARED.read_bytes() == first
    read = prepared.read()
    prepared.write(read)
    assert store.PREPARED.read_bytes() == first


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


def counted(monkeypatch) -> list[Path]:
    """The images that are opened from now on."""
    opened, open_ = [], images.rgb
    monkeypatch.setattr(prepared, "rgb", lambda path: (opened.append(path), open_(path))[1])
    return opened


def test_checked_pairs_are_not_opened_again(own: Path, monkeypatch):
    first = prepare()
    opened = counted(monkeypatch)
    assert prepare() == first
    assert opened == []
    os.utime(own / "images" / "3.png", ns=(1, 1))
    assert prepare() == first
    assert opened == [Path("own/images/3.png")]
    Image.fromarray(np.ones((8, 12), np.uint8)).save(own / "masks" / "4.png")
    changed = prepare()
    assert opened[1:] == [Path("own/images/4.png")]
    assert changed != first
    prepare(ignore=9)
    assert len(opened) == 8, "another mask rule checks everything again"


def test_a_damaged_cache_costs_time_alone(own: Path, monkeypatch):
    first = prepare()
    (cache,) = (store.root() / "checked").iterdir()
    cache.write_bytes(cache.read_bytes()[:100])
    opened = counted(monkeypatch)
    assert prepare() == first
    assert len(opened) == 6


def test_a_killed_run_goes_on_where_it_was(own: Path, monkeypatch):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom pipeline.preparation import pairs as preparation\n"
        "from pipeline.datasets.folder import Folder\n"
        "preparation.SAVE_SECONDS = 0\nlabel = Folder.label\n"
        "def deadly(self, path):\n    if path.name == '4.png':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return label(self, path)\n"
        "Folder.label = deadly\npreparation.prepare(Folder(Path('own'), classes=['a', 'b']), 'folder', Path('unused'))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    assert not store.PREPARED.exists()
    opened = counted(monkeypatch)
    prepare()
    assert sorted(path.name for path in opened) == ["4.png", "5.png"]


def test_a_lost_or_shortened_store_file_comes_back(own: Path):
    published = prepare()
    first, second, third = published.splits["train"][:3]
    paths = [store.path("images", first.image), store.path("labels", second.label), store.path("images", third.image)]
    content = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].unlink()
    paths[2].write_bytes(content[2][:50])
    for open_, pair in ((prepared.open_image, first), (prepared.open_label, second)):
        with pytest.raises(UserError, match=r"is missing from the store: `uv run python -m stages.prepare` gets it back"):
            open_(pair)
    with pytest.raises(UserError, match=r"does not decode.*run `uv run python -m stages.prepare"):
        prepared.open_image(third)
    assert prepare() == published
    assert [path.read_bytes() for path in paths] == content
    shutil.rmtree("data/store")
    assert prepare() == published
    assert [path.read_bytes() for path in paths] == content


def test_editing_ones_own_file_in_place_leaves_the_store_alone(own: Path):
    published = prepare()
    pair = published.splits["train"][0]
    before = prepared.open_image(pair).tobytes()
    with (own / "images" / f"{pair.name}.png").open("r+b") as file:
        file.write(b"scribble")
    assert prepared.open_image(pair).tobytes() == before


def test_generated_files_are_linked_and_lost_ones_are_drawn_again(workspace: Path):
    dataset = Scenes(Path("unused"), train_images=3, val_images=2, height=32, width=40, seed=0)
    folder = store.root() / "generated" / "scenes"
    published, pixels = preparation.prepare(dataset, "scenes", folder)
    assert {split: len(pairs) for split, pairs in published.splits.items()} == {"train": 3, "val": 2}
    assert pixels["train"].total() == 3 * 32 * 40
    assert all(store.path("images", pair.image).stat().st_nlink == 2 for pair in published.splits["train"])
    shutil.rmtree(store.root())
    assert preparation.prepare(dataset, "scenes", folder)[0] == published


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


def test_a_full_disk_leaves_nothing_half_written(own: Path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        prepare()
    monkeypatch.undo()
    os.chdir(own.parent)
    assert not store.PREPARED.exists()
    assert [path for path in store.root().rglob("*") if path.is_file() and path.name != "prepare.lock"] == []
    prepare()


def test_what_the_cache_names_was_flushed_before(own: Path, monkeypatch):
    flushed, sync = [], files.sync

    def recorded(path: Path) -> None:
        flushed.append(path)
        sync(path)

    monkeypatch.setattr(files, "sync", recorded)
    published = prepare()
    (cache,) = (store.root() / "checked").iterdir()
    before = flushed[: flushed.index(cache.parent)]  # the folder is flushed when the cache has been renamed into it
    for pair in (*published.splits["train"], *published.splits["val"]):
        for path in (store.path("images", pair.image), store.path("labels", pair.label)):
            assert before.index(path) < before.index(path.parent)


def test_a_store_file_damaged_in_place_is_replaced_where_it_is_looked_at_again(own: Path):
    pair = prepare().splits["train"][0]
    path = store.path("images", pair.image)
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes(9))
    os.utime(own / "images" / f"{pair.name}.png", ns=(1, 1))
    prepare()
    assert path.read_bytes() == content


def test_a_second_prepare_waits_for_the_first(own: Path):
    code = "from tests.preparation.test_prepare import prepare; prepare()"
    with files.locked(store.root() / "prepare.lock", "the store"):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        second = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
        said = second.stderr.readline()
        published = store.PREPARED.exists()
    second.communicate(timeout=60)
    assert f"already being written by process {os.getpid()}" in said
    assert not published
    assert second.returncode == 0
    assert store.PREPARED.exists()


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


def test_doubts_are_voiced(own: Path):
    shutil.copy(own / "images" / "0.png", own / "images" / "1.png")
    for place in range(6):
        Image.fromarray(np.full((8, 12), 9 if place else 0, np.uint8)).save(own / "masks" / f"{place}.png")
    dataset = Folder(Path("own"), classes=["a", "b"], ignore=9, val_share=0.5)
    published, pixels = preparation.prepare(dataset, "folder", Path("unused"))
    said = "\n".join(summary.doubts(published, pixels))
    assert "has the class b" in said or "has the class a, b" in said
    assert "have no class: is data.ignore right?" in said
    shown = summary.lines(published, pixels)
    assert any(line.startswith("ignored") for line in shown)


def test_manifests_that_are_missing_damaged_or_asked_for_too_much(own: Path):
    with pytest.raises(UserError, match=r"prepared.json does not exist: run `uv run dvc repro prepare`"):
        prepared.read()
    published = prepare()
    with pytest.raises(UserError, match="dataset folder has no split 'test'; known: train, val"):
        prepared.pairs(published, "test")
    assert prepared.pairs(published, "val") == published.splits["val"]
    raw = json.loads(store.PREPARED.read_bytes())
    del raw["splits"]["train"][0]["image"]
    store.PREPARED.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is damaged: run"):
        prepared.read()


def test_every_dataset_keeps_the_contract():
    options = {"scenes": {"train_images": 1, "val_images": 1, "height": 32, "width": 32, "seed": 0}, "folder": {"classes": ["a"]}}
    for name, constructor in DATASETS.items():
        dataset = constructor(Path("unused"), **options.get(name, {}))
        assert len(dataset.classes) == len(dataset.palette)
        assert {"train", "val"} <= set(dataset.splits)


def test_preparing_imports_no_torch(own: Path):
    code = (
        "import sys\nfrom stages import prepare\nprepare.main()\n"
        "assert not {'torch', 'timm', 'skimage', 'mlflow'} & set(sys.modules), 'heavy imports'"
    )
    command()
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
