"""Superpixels: right, the same again, computed once, and safe to kill."""

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from makers.stored import publish, put_pair, textured
from PIL import Image
from scipy import ndimage
from scipy.io import loadmat

from pipeline.data import superpixel_maps
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.settings.schema import SuperpixelSet
from pipeline.superpixels import sets, slic

ROOT = Path(__file__).parents[2]
SLIC = SuperpixelSet(algorithm="slic", segments=30)
SLICO = SuperpixelSet(algorithm="slico", segments=30)


def stage(folder: Path, name: str, **environment: str) -> subprocess.Popen:
    """Start `python -m stages.superpixels NAME` in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.superpixels", name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


def set_params(folder: Path, **sets: dict) -> None:
    """The project's params.yaml with other superpixel sets."""
    lines = (ROOT / "params.yaml").read_text().splitlines(keepends=True)
    begin = lines.index("superpixels:\n")
    end = next(index for index in range(begin + 1, len(lines)) if not lines[index].startswith(" "))
    sets = {"none": {}, "slic": {"algorithm": "slic", "segments": 30}, **sets}
    new = ["superpixels:\n", *(f"  {name}: {json.dumps(values)}\n" for name, values in sets.items()), "\n"]
    (folder / "params.yaml").write_text("".join(lines[:begin] + new + lines[end:]))


def maps_in_store() -> dict[str, int]:
    """The finished maps with the time they were written, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in (store.root() / "superpixels").glob("*/*.png") if path.name[0] != "."}


@pytest.mark.parametrize("settings", [SLIC, SLICO])
def test_labels_count_from_zero_and_every_superpixel_is_connected(settings):
    labels = slic.label_map(textured(0, 60, 80), settings)
    assert labels.dtype == np.int32
    assert labels.shape == (60, 80)
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
    assert 15 <= labels.max() + 1 <= 60
    assert all(ndimage.label(labels == label)[1] == 1 for label in range(labels.max() + 1))


def test_every_setting_has_an_effect():
    image = textured(1, 60, 80)
    base = slic.label_map(image, SLIC)
    for change in ({"algorithm": "slico"}, {"segments": 60}, {"compactness": 0.1}, {"sigma": 3.0}):
        assert not np.array_equal(base, slic.label_map(image, dataclasses.replace(SLIC, **change)))


@pytest.mark.parametrize("settings", [SLIC, SLICO])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 4)])
def test_tiny_and_grey_images_work(settings, shape):
    for image in (np.full((*shape, 3), 128, np.uint8), textured(2, *shape)):
        labels = slic.label_map(image, settings)
        assert labels.shape == shape
        assert labels.min() == 0


def test_more_labels_than_16_bits_hold_are_refused(monkeypatch):
    monkeypatch.setattr("skimage.segmentation.slic", lambda *_, **__: np.arange(300 * 300).reshape(300, 300))
    with pytest.raises(UserError, match="90000 superpixels are more than the 65535"):
        slic.label_map(np.zeros((300, 300, 3), np.uint8), SLIC)


def test_key_depends_on_the_image_and_on_every_setting_and_on_nothing_else():
    changes = ({}, {"algorithm": "slico"}, {"segments": 31}, {"compactness": 9.0}, {"sigma": 1.0})
    keys = [sets.key("00", dataclasses.replace(SLIC, **change)) for change in changes] + [sets.key("01", SLIC)]
    assert len(set(keys)) == len(keys)
    assert sets.key("00", dataclasses.replace(SLIC, compactness=10)) == sets.key("00", SLIC)
    assert keys[0] == hashlib.sha256(b'[1, "00", "slic", 30, 10.0, 0.0]').hexdigest()  # a change would orphan every stored map


def test_another_version_of_the_algorithm_has_other_keys(monkeypatch):
    key = sets.key("00", SLIC)
    monkeypatch.setattr(sets, "VERSION", sets.VERSION + 1)
    assert sets.key("00", SLIC) != key


def test_the_published_maps_are_the_images_labels(workspace):
    pairs = [put_pair(f"image-{seed}", textured(seed, 24, 32)) for seed in range(3)]
    made, computed = sets.publish("slic", SLIC, [*pairs, pairs[0]])
    assert computed == 3
    assert superpixel_maps.read_set("slic") == made
    for seed, pair in enumerate(pairs):
        expected = slic.label_map(textured(seed, 24, 32), SLIC)
        opened = superpixel_maps.open_map(made.maps[pair.image].file, pair)
        assert opened.dtype == np.int32
        assert np.array_equal(opened, expected)
        path = store.path("superpixels", made.maps[pair.image].file)
        assert made.maps[pair.image].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert made.maps[pair.image].segments == expected.max() + 1


def test_manifest_holds_no_name_and_equal_sets_have_equal_bytes(workspace):
    pairs = [put_pair(f"image-{seed}", textured(seed, 24, 32)) for seed in range(3)]
    sets.publish("one", SLIC, pairs)
    _, computed = sets.publish("two", SLIC, pairs[::-1])
    assert computed == 0
    one, two = (store.manifest_of(name).read_bytes() for name in ("one", "two"))
    assert one == two
    assert str(workspace).encode() not in one
    sets.publish("none", None, [])
    assert json.loads(store.manifest_of("none").read_text()) == {"settings": None, "maps": {}}
    assert superpixel_maps.read_set("none").settings is None


def test_labels_beyond_8_bits_survive(workspace):
    pair = put_pair("large", textured(0, 64, 64))
    made, _ = sets.publish("slic", SuperpixelSet(algorithm="slico", segments=2000), [pair])
    assert made.maps[pair.image].segments > 300
    assert len(np.unique(made.open(pair))) == made.maps[pair.image].segments


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other size", "8 bits", "holes"])
def test_a_damaged_map_is_named_and_computed_again(workspace, damage):
    pair = put_pair("hurt", textured(0, 24, 32))
    made, _ = sets.publish("slic", SLIC, [pair])
    path = store.path("superpixels", made.maps[pair.image].file)
    good = path.read_bytes()
    arrays = {
        "other size": np.zeros((24, 31), np.uint16),
        "8 bits": np.zeros((24, 32), np.uint8),
        "holes": np.full((24, 32), 7, np.uint16),
    }
    if damage in arrays:
        Image.fromarray(arrays[damage]).save(path)
    else:
        path.write_bytes({"truncated": good[: len(good) // 2], "empty": b"", "text": b"no map"}[damage])
    if damage != "holes":  # the reader of one map does not count its labels
        with pytest.raises(UserError, match=r"hurt.*run `uv run python -m stages.superpixels slic"):
            made.open(pair)
    again, computed = sets.publish("slic", SLIC, [pair])
    assert (again, computed) == (made, 1)
    assert path.read_bytes() == good


def test_what_is_missing_is_named_with_the_way_out(workspace):
    pair, other = put_pair("there", textured(0, 24, 32)), put_pair("absent", textured(1, 24, 32))
    with pytest.raises(UserError, match=r"data/superpixels/slic.json does not exist.*`uv run python -m stages.superpixels slic"):
        superpixel_maps.read_set("slic")
    made, _ = sets.publish("slic", SLIC, [pair])
    with pytest.raises(UserError, match=r"slic.json has no map of absent"):
        made.open(other)
    with pytest.raises(UserError, match=r"other settings than superpixels.slic"):
        superpixel_maps.read_complete("slic", SLICO, [pair])
    path = store.path("superpixels", made.maps[pair.image].file)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} is missing from the store: `uv run python -m stages.superpixels slic"):
        made.open(pair)
    for content in ("[]", "{}", '{"settings": null, "maps": {"a": {}}}', "{"):
        store.manifest_of("slic").write_text(content)
        with pytest.raises(UserError, match=r"slic.json is damaged"):
            superpixel_maps.read_set("slic")


def test_the_stage_computes_only_what_is_missing(workspace):
    publish([put_pair("a", textured(0, 24, 32))], [put_pair("b", textured(1, 24, 32))])
    set_params(workspace, more={"algorithm": "slico", "segments": 60})
    status, output, errors = ended(stage(workspace, "slic"))
    assert (status, "30 asked for" in output, "2 maps computed, 0 found" in output) == (0, True, True), output + errors
    before = maps_in_store()
    status, output, errors = ended(stage(workspace, "more"))
    assert (status, "2 maps computed, 0 found" in output) == (0, True), output + errors
    after = maps_in_store()
    assert len(before) == 2
    assert len(after) == 4
    assert before.items() <= after.items()
    status, output, errors = ended(stage(workspace, "unknown"))
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert all(word in errors for word in ("unknown", "none", "slic", "more"))


def test_the_stage_of_the_empty_set_needs_no_image(workspace):
    set_params(workspace)
    status, output, errors = ended(stage(workspace, "none"))
    assert status == 0, output + errors
    assert superpixel_maps.read_set("none").maps == {}


def children(process: int) -> list[int]:
    """The processes that one has started, by Linux's account."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_stage_takes_its_workers_with_it_and_goes_on_where_it_was(workspace):
    count = 80  # a second of work left when the third map is seen
    pairs = [put_pair(f"image-{seed}", textured(seed, 192, 256)) for seed in range(count)]
    publish(pairs)
    set_params(workspace)
    process = stage(workspace, "slic")
    until(lambda: len(maps_in_store()) >= 3)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    ended(process)
    until(lambda: not any(alive(worker) for worker in workers))
    before = maps_in_store()
    assert 3 <= len(before) < count, "killed too late for the test to mean anything"
    assert not store.manifest_of("slic").exists()
    status, output, errors = ended(stage(workspace, "slic"))
    assert status == 0, errors
    assert f"{count - len(before)} maps computed, {len(before)} found" in output
    assert before.items() <= maps_in_store().items()
    for seed in (0, count - 1):
        opened = superpixel_maps.read_set("slic").open(pairs[seed])
        assert np.array_equal(opened, slic.label_map(textured(seed, 192, 256), SLIC))


def test_two_stages_at_once_end_well_and_share_the_work(workspace):
    publish([put_pair(f"image-{seed}", textured(seed, 192, 256)) for seed in range(12)])
    set_params(workspace, same={"algorithm": "slic", "segments": 30})
    results = [ended(process) for process in [stage(workspace, name) for name in ("slic", "same")]]
    assert [status for status, _, _ in results] == [0, 0], results
    assert store.manifest_of("slic").read_bytes() == store.manifest_of("same").read_bytes()
    assert len(maps_in_store()) == 12


def boundaries(labels_HW: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label."""
    edges = np.zeros(labels_HW.shape, bool)
    edges[:, :-1] |= labels_HW[:, :-1] != labels_HW[:, 1:]
    edges[:-1] |= labels_HW[:-1] != labels_HW[1:]
    return edges


def recall(labels_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """The share of true boundary pixels with a superpixel boundary within two pixels."""
    near = ndimage.binary_dilation(boundaries(labels_HW), np.ones((5, 5), bool))
    return near[boundaries(truth_HW)].mean()


def test_superpixels_follow_boundaries_that_people_drew(shared):
    scores = []
    with zipfile.ZipFile(shared / "data" / "bsds500-val.zip") as archive:
        images = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:4]
        for name in images:
            image = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            drawn = next(other for other in archive.namelist() if other.endswith(f"{Path(name).stem}.mat"))
            truth = loadmat(io.BytesIO(archive.read(drawn)))["groundTruth"][0, 0]["Segmentation"][0, 0]
            for algorithm in ("slic", "slico"):
                labels = slic.label_map(image, SuperpixelSet(algorithm=algorithm, segments=300))
                side = int((image.shape[0] * image.shape[1] / (labels.max() + 1)) ** 0.5)
                grid = (np.arange(image.shape[0]) // side)[:, None] * 1000 + (np.arange(image.shape[1]) // side)[None]
                scores.append((recall(labels, truth), recall(grid, truth)))
    ours, grids = np.mean(scores, axis=0)
    assert ours > 0.75
    assert ours > grids + 0.2
