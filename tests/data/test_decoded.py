"""The decoded store gives the batches of the files themselves, bit for bit, and survives what disks and kills do to it."""

import dataclasses
import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from makers.batches import SLIC, batches, config, fault, same
from makers.stored import publish, put, put_pair, textured
from PIL import Image

from pipeline.data import decoded, prepared, superpixel_maps
from pipeline.data.prepared import Pair, Prepared
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.settings.profiles import load_profile
from pipeline.settings.schema import Config, Jitter
from pipeline.superpixels import sets
from pipeline.training.batches import Batch, Fault

ROOT = Path(__file__).parents[2]
JITTER = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
SETTINGS = {
    "as it is": {"jitter": None, "scale": (1.0, 1.0), "crop": (17, 20)},
    "smaller and larger": {"jitter": None, "scale": (0.2, 3.0)},
    "jitter": {"jitter": JITTER, "scale": (0.5, 2.0), "crop": (19, 27)},
    "padding": {"jitter": JITTER, "scale": (0.3, 1.2), "crop": (64, 80)},
    "ratio_base": {"jitter": None, "ratio_base": (90, 50)},
    "a pixel": {"jitter": None, "scale": (0.01, 9.0), "crop": (1, 1)},
}


def put_jpeg(name: str, pixels_HW3: np.ndarray, labels_HW: np.ndarray) -> Pair:
    """A pair whose image is a JPEG, stored lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = Path("photograph.jpg")
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels_HW3))).save(path, exif=exif, quality=90)
    image = f"{files.sha256(path)}.jpg"
    files.write_bytes(store.path("images", image), path.read_bytes())
    return Pair(name, image, put("labels", labels_HW), *labels_HW.shape)


@pytest.fixture
def images(workspace: Path) -> Prepared:
    """Six pairs of different sizes, PNG and JPEG, with their superpixels."""
    pairs = []
    for seed in range(6):
        shape = 25 + 11 * seed, 61 - 7 * seed
        labels = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
        pairs.append((put_jpeg if seed % 3 == 2 else put_pair)(f"image-{seed}", textured(seed, *shape), labels))
    sets.publish("slic", SLIC, pairs)
    return publish(pairs)


def kept(**changes) -> Config:
    """The same run with a decoded store."""
    return config(**{**changes, "launch": {"decoded": True, **changes.get("launch", {})}})


def arrays() -> list[Path]:
    """What the decoded store holds, unfinished files too."""
    return sorted(path for path in (store.root() / "decoded").rglob("*") if path.is_file())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_batches_are_the_same_to_the_bit(images: Prepared, settings: dict):
    run = {"data": settings, "train": {"iterations": 15}}
    expected = list(batches(config(**run), images))
    for _ in ("written", "read"):
        made = list(batches(kept(**run), images))
        assert len(made) == 15
        assert all(same(one, other) for one, other in zip(made, expected, strict=True))
    assert len(arrays()) == 18


def test_without_superpixels_and_with_workers(images: Prepared):
    run = {"superpixels": "none", "superpixel_set": None}
    expected = list(batches(config(**run), images))
    for workers in (2, 0):
        made = list(batches(kept(**run, launch={"workers": workers}), images))
        assert all(torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels) for a, b in zip(made, expected, strict=True))
        assert {batch.superpixels for batch in made} == {None}
    assert len(arrays()) == 12


def test_what_is_there_is_not_decoded_again(images: Prepared):
    expected = list(batches(kept(), images))
    for kind in ("images", "labels", "superpixels"):
        shutil.rmtree(store.root() / kind)
    assert all(same(one, other) for one, other in zip(batches(kept(), images), expected, strict=True))


def test_pixels_are_the_files(images: Prepared):
    maps = superpixel_maps.read_set("slic")
    for pair in images.splits["train"]:
        for _ in ("written", "read"):
            assert np.array_equal(decoded.image(pair).transpose(1, 2, 0), np.asarray(prepared.open_image(pair)))
            assert np.array_equal(decoded.label(pair), prepared.open_label(pair))
            assert np.array_equal(decoded.superpixels(maps, pair), maps.open(pair))
    assert not decoded.image(pair).flags.writeable


@pytest.mark.parametrize("kind", ["images", "labels", "superpixels"])
@pytest.mark.parametrize("damage", ["shortened", "emptied", "longer"])
def test_a_file_of_another_size_is_made_again(images: Prepared, kind: str, damage: str):
    expected = list(batches(kept(), images))
    bad = [path for path in arrays() if path.parent.parent.name == kind]
    whole = [path.read_bytes() for path in bad]
    for path, content in zip(bad, whole, strict=True):
        path.write_bytes({"shortened": content[:-1], "emptied": b"", "longer": content + b"x"}[damage])
    assert all(same(one, other) for one, other in zip(batches(kept(), images), expected, strict=True))
    assert [path.read_bytes() for path in bad] == whole


def test_other_superpixels_are_other_arrays(images: Prepared):
    list(batches(kept(), images))
    other = dataclasses.replace(SLIC, segments=40)
    sets.publish("slic", other, images.splits["train"])
    expected = list(batches(config(superpixel_set=other), images))
    assert all(same(one, two) for one, two in zip(batches(kept(superpixel_set=other), images), expected, strict=True))
    assert len(arrays()) == 24


def test_other_decoders_are_other_arrays(images: Prepared, monkeypatch: pytest.MonkeyPatch):
    list(batches(kept(), images))
    monkeypatch.setattr(decoded.PIL, "__version__", "99.0")
    list(batches(kept(), images))
    assert len(arrays()) == 36


def test_a_process_killed_while_writing_leaves_no_array(images: Prepared):
    code = (
        "import os, signal\nfrom pipeline.data import decoded, prepared\n"
        "calls = []\nfsync = os.fsync\n"
        "def deadly(descriptor):\n"
        "    calls.append(descriptor)\n"
        "    if len(calls) == 7:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    fsync(descriptor)\n"
        "os.fsync = deadly\n"
        "for pair in prepared.read().splits['train']:\n    decoded.label(pair), decoded.image(pair)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = [path.name for path in arrays()]
    assert len([name for name in names if not name.startswith(".")]) == 3  # a file and its folder are flushed for each
    assert len([name for name in names if name.startswith(".")]) == 1
    expected = list(batches(config(), images))
    assert all(same(one, other) for one, other in zip(batches(kept(), images), expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_disk_that_takes_no_more_is_one_line(images: Prepared, monkeypatch: pytest.MonkeyPatch, number: int, words: str, workers: int):
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    message = fault(kept(launch={"workers": workers}), images)
    assert message.startswith("step 0: image image-")
    assert f"cannot write {decoded.folder()}" in message
    assert words in message
    assert message.endswith("set `decoded: false` in the launch profile")
    assert "\n" not in message
    assert arrays() == []


def test_too_small_a_disk_is_refused_before_the_first_step(images: Prepared, monkeypatch: pytest.MonkeyPatch):
    maps = superpixel_maps.read_set("slic")
    need = sum(6 * pair.height * pair.width for pair in images.splits["train"])
    free = need - 1
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"decoded.* needs 0.0 GB more, but its disk has 0.0 GB free.*decoded: false"):
        batches(kept(), images)
    batches(config(), images)
    free = need
    list(batches(kept(), images))
    free = 0
    list(batches(kept(), images))  # all is there
    decoded.raw_superpixels(maps, images.splits["train"][0]).path.unlink()
    with pytest.raises(UserError, match="needs"):
        batches(kept(), images)


def test_a_store_that_may_not_be_written_is_refused_before_the_first_step(images: Prepared, monkeypatch: pytest.MonkeyPatch):
    def refused(self: Path, *arguments, **options) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=r"cannot write .*decoded.*: Read-only file system: .*decoded: false"):
        batches(kept(), images)


def test_a_missing_original_is_named_as_ever(images: Prepared):
    store.path("images", images.splits["train"][3].image).unlink()
    message = fault(kept(), images)
    assert "image image-3: " in message
    assert "is missing from the store" in message


def digest(made: list[Batch | Fault]) -> str:
    """A hash of batches."""
    sums = hashlib.sha256()
    for batch in made:
        assert isinstance(batch, Batch), batch
        for tensor in (batch.image, batch.labels, batch.superpixels):
            sums.update(tensor.numpy().tobytes())
    return sums.hexdigest()


def at_once(barrier, results, seed: int) -> None:
    """One of several processes."""
    torch.set_num_threads(1)
    barrier.wait()
    results.put((seed, digest(list(batches(kept(seed=seed), prepared.read())))))


def test_processes_at_once_share_the_work(images: Prepared):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=at_once, args=(barrier, results, seed)) for seed in (0, 0, 1, 2)]
    for process in processes:
        process.start()
    made = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert made == {seed: digest(list(batches(config(seed=seed), images))) for seed in (0, 1, 2)}
    assert len(arrays()) == 18
    assert not any(path.name.startswith(".") for path in arrays())


def test_the_profile_asks_for_it(workspace: Path):
    assert load_profile("local").decoded is False
    Path("mine.yaml").write_text(yaml.safe_dump({"backend": "local", "decoded": True}))
    assert load_profile("mine.yaml").decoded is True
