"""Training batches: a pure function of seed and step, and every bad sample a Fault that names it."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.batches import MEAN, SLIC, batches, config, fault, same
from makers.stored import publish, put, put_pair, textured

from pipeline.data import superpixel_maps
from pipeline.data.prepared import Prepared
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Finetune
from pipeline.superpixels import sets
from pipeline.training import batches as data
from pipeline.training.batches import Batch, Fault

ROOT = Path(__file__).parents[2]


@pytest.fixture
def images(workspace) -> Prepared:
    """Seven pairs of different sizes with their superpixels."""
    pairs = []
    for seed in range(7):
        shape = 20 + 3 * seed, 40 - 2 * seed
        labels = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
        pairs.append(put_pair(f"image-{seed}", textured(seed, *shape), labels))
    sets.publish("slic", SLIC, pairs)
    return publish(pairs)


def joined(parts: list[Batch]) -> Batch:
    """The global batch of the ranks' parts."""
    image, labels, maps = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    return Batch(image, labels, maps, tuple(name for part in parts for name in part.names))


def test_a_batch_has_the_shapes_and_types_of_its_contract(images):
    made = list(batches(config(), images))
    assert len(made) == 9
    for batch in made:
        assert batch.image.shape == (4, 3, 16, 24)
        assert batch.image.dtype == torch.float32
        assert 0 <= batch.image.min() < batch.image.max() <= 1
        assert batch.labels.shape == batch.superpixels.shape == (4, 16, 24)
        assert batch.labels.dtype == batch.superpixels.dtype == torch.int64
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 255}
        assert torch.equal(batch.labels == 255, batch.superpixels == -1)  # no void here: both are the padding
        assert len(batch.names) == 4
    assert (torch.cat([batch.labels for batch in made]) == 255).any()


def test_padding_is_the_mean_whatever_the_jitter(images):
    made = joined(list(batches(config(), images)))
    outside = made.labels == 255
    assert outside.any()
    assert (made.image.permute(0, 2, 3, 1)[outside] == torch.tensor(MEAN)).all()


def test_the_global_batch_does_not_depend_on_ranks_workers_or_restarts(images):
    whole = list(batches(config(), images))
    for workers in (0, 1, 2):
        run = config(launch={"workers": workers})
        for world in (1, 2, 4):
            parts = [list(batches(run, images, rank=rank, world=world)) for rank in range(world)]
            assert all(same(joined(list(step)), expected) for step, expected in zip(zip(*parts, strict=True), whole, strict=True))
            if world == 2 and workers:
                break  # what workers change does not depend on the number of ranks
    for start in (1, 4, 8):
        resumed = list(batches(config(launch={"workers": start % 2}), images, start=start))
        assert all(same(one, other) for one, other in zip(resumed, whole[start:], strict=True))
    assert list(batches(config(), images, start=9)) == []


def test_threads_do_not_change_a_batch(images):
    large = config(data={"crop": (240, 320), "scale": (8.0, 8.0)})  # large enough for torch to share a sum out
    before, made = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made.append(next(batches(large, images)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert same(made[0], made[1])
    assert same(made[0], made[2])


def test_the_training_random_state_is_left_alone(images):
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(batches(config(launch={"workers": workers}), images))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ_and_an_image_looks_different_each_time(images):
    one, other = (joined(list(batches(config(seed=seed), images))) for seed in (0, 1))
    assert one.names != other.names
    looks = [image for image, name in zip(one.image, one.names, strict=True) if name == "image-3"]
    assert len(looks) >= 4
    assert not any(torch.equal(a, b) for index, a in enumerate(looks) for b in looks[:index])


def test_each_epoch_shows_every_image_once_in_an_order_of_its_own():
    order = [data.element(5, position, 11) for position in range(33)]
    epochs = [tuple(order[begin : begin + 11]) for begin in (0, 11, 22)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert [data.element(6, position, 11) for position in range(11)] != order[:11]


def test_the_order_is_the_elements(images):
    names = [name for batch in batches(config(seed=3), images) for name in batch.names]
    assert names == [f"image-{data.element(3, position, 7)}" for position in range(36)]


def test_drawn_numbers_stay_as_they_are():
    """A change would silently train every published seed on other batches."""
    assert [data.element(0, position, 7) for position in range(7)] == [4, 1, 3, 6, 0, 5, 2]
    assert data.stream(0, data.AUGMENTATION, 2, 1).integers(0, 1000, 4).tolist() == [477, 695, 108, 631]


def test_without_superpixels_or_jitter(images):
    bare = config(superpixels="none", superpixel_set=None, data={"jitter": None, "scale": (1.0, 1.0), "crop": (20, 40)})
    batch = next(batches(bare, images))
    assert batch.superpixels is None
    moved = data.to_device(batch, torch.device("cpu"), channels_last=True)
    assert moved.superpixels is None
    assert moved.image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.image, batch.image)
    assert moved.names == batch.names
    for index, name in enumerate(batch.names):
        seed = int(name[-1])
        height, width = min(20, 20 + 3 * seed), min(40, 40 - 2 * seed)
        original = torch.from_numpy(textured(seed, 20 + 3 * seed, 40 - 2 * seed).copy()).permute(2, 0, 1) / 255
        view = batch.image[index, :, :height, :width]
        tops = range(original.shape[1] - height + 1)
        assert any(torch.equal(view, o) or torch.equal(view.flip(-1), o) for top in tops for o in [original[:, top : top + height, :width]])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "damage", "words"), [
    ("images", "missing", ["missing from the store", "stages.prepare"]),
    ("images", "truncated", ["does not decode"]),
    ("images", "other size", ["not 34 x 29"]),
    ("labels", "missing", ["missing from the store"]),
    ("labels", "other size", ["no label map of 34 x 29"]),
    ("superpixels", "missing", ["missing from the store", "python -m stages.superpixels slic"]),
    ("superpixels", "truncated", ["does not decode", "python -m stages.superpixels slic"]),
    ("superpixels", "other size", ["no superpixel map", "python -m stages.superpixels slic"]),
])  # fmt: skip
def test_a_bad_sample_is_a_fault_that_names_step_and_image(images, kind, damage, words, workers):
    bad = images.splits["train"][3]
    path = store.path(kind, {"images": bad.image, "labels": bad.label, "superpixels": superpixel_maps.read_set("slic").file(bad)}[kind])
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        shape = (29, 35)
        array = {"images": textured(0, *shape), "labels": np.zeros(shape, np.uint8), "superpixels": np.zeros(shape, np.uint16)}[kind]
        path.write_bytes(store.path("other", put("other", array)).read_bytes())
    step = [data.element(0, position, 7) for position in range(36)].index(3) // 4
    message = fault(config(launch={"workers": workers}), images)
    assert message.startswith(f"step {step}: image image-3: ")
    assert all(word in message for word in words)
    assert "\n" not in message


def test_a_set_that_does_not_fit_is_refused_before_the_first_step(images):
    more = dataclasses.replace(images, splits={"train": (*images.splits["train"], put_pair("new", textured(99, 20, 20)))})
    with pytest.raises(UserError, match=r"slic.json has no map of new.*stages.superpixels slic"):
        batches(config(), more)
    with pytest.raises(UserError, match="other settings"):
        batches(config(superpixel_set=dataclasses.replace(SLIC, segments=13)), images)
    with pytest.raises(UserError, match=r"other.json does not exist"):
        batches(config(superpixels="other"), images)


def test_a_finetune_trains_on_the_named_images_alone(images, workspace):
    named = config(finetune=Finetune(source=Path("x"), images=("image-2", "image-5", "image-2")))
    assert {name for batch in batches(named, images) for name in batch.names} == {"image-2", "image-5"}
    with pytest.raises(UserError, match=r"images: 'image-22' is no training image.*did you mean image-2"):
        batches(config(finetune=Finetune(source=Path("x"), images=("image-2", "image-22"))), images)


def test_no_training_images_is_said(images):
    with pytest.raises(UserError, match="no training images"):
        batches(config(), dataclasses.replace(images, splits={"train": ()}))


def test_a_crop_larger_than_an_image_is_one_warning(images, capsys):
    list(batches(config(launch={"workers": 1}), images))
    errors = capsys.readouterr().err
    assert errors.count("warning:") == 1
    assert "crop 16 x 24 is larger than" in errors
    assert "padded" in errors
    list(batches(config(), images, rank=1, world=2))
    list(batches(config(data={"crop": (8, 8)}), images))
    assert capsys.readouterr().err == ""


def test_a_killed_worker_is_a_fault_and_nothing_is_left(images):
    handler = signal.getsignal(signal.SIGCHLD)
    made = batches(config(launch={"workers": 1}, train={"iterations": 10_000}), images)
    first = next(made)
    assert isinstance(first, Batch)
    assert signal.getsignal(signal.SIGCHLD) is handler  # or the death would raise wherever the main thread is
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    last = next(batch for batch in made if isinstance(batch, Fault))
    assert "killed a data worker" in last.message
    assert last.message.startswith("step ")
    assert next(made, None) is None


@pytest.mark.parametrize("error", [
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
    EOFError(), ConnectionResetError(104, "reset"), ConnectionRefusedError(111, "refused"), FileNotFoundError(2, "no such socket"),
    EOFError("Caught EOFError in pin memory thread for device 0."),
])  # fmt: skip
def test_a_death_is_a_fault_however_it_shows(error):
    def dying() -> Iterator[Batch]:
        yield Batch(torch.zeros(1), torch.zeros(1), None)
        raise error

    _, last = data.guarded(dying(), 4)
    assert isinstance(last, Fault)
    assert last.message.startswith("step 5: the system killed a data worker")


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes differ"), EOFError("Caught EOFError in DataLoader worker process 0."), KeyError("x")]
)
def test_an_error_of_the_code_keeps_its_traceback(error):
    def failing() -> Iterator[Batch]:
        yield from ()
        raise error

    with pytest.raises(type(error)):
        list(data.guarded(failing(), 0))


def test_workers_end_when_the_iterator_is_dropped(images):
    made = batches(config(launch={"workers": 2}), images)
    next(made)
    assert len(multiprocessing.active_children()) == 2
    del made
    deadline = time.monotonic() + 20
    while multiprocessing.active_children():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_data_workers_end_with_their_parent_however_it_ends(images):
    code = (
        "import multiprocessing, time\n"
        "from makers.batches import batches, config\n"
        "from pipeline.data import prepared\n"
        "made = batches(config(launch={'workers': 2}, data={'jitter': None}), prepared.read())\n"
        "next(made)\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        workers = [int(number) for number in process.stdout.readline().split()]
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 4  # torch's own watch on the parent looks every five seconds
    while any(Path(f"/proc/{worker}").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
