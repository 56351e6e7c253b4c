"""Training batches: which images a step sees, and how, is a pure function of (seed, step).

Element i of step t is number t B + i of the concatenated permutations of the training images, one for each epoch, each drawn
from (seed, epoch); its augmentation is drawn from (seed, t, i). A rank takes its share of the B elements. So the
global batch of a step is the same whatever the number of processes and of data workers, and wherever a run was resumed.
"""

import contextlib
import functools
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data import decoded
from pipeline.data.prepared import Pair, Prepared, open_image, open_label, pairs
from pipeline.data.superpixel_maps import SuperpixelMaps, read_complete
from pipeline.ground.errors import UserError
from pipeline.ground.lifeline import die_with_parent
from pipeline.ground.progress import warn
from pipeline.settings.schema import Config, Train
from pipeline.settings.strict import suggestion
from pipeline.training import augment

SPLIT = "train"
ORDER, AUGMENTATION = 0, 1  # what a random stream is for


class Batch(NamedTuple):
    """A rank's share of a step: B images of the crop's size."""

    image: Tensor  # float32 [B, 3, H, W] in [0, 1]
    labels: Tensor  # int64 [B, H, W], 255 ignored
    superpixels: Tensor | None  # int64 [B, H, W], -1 where there is none
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """What takes a batch's place when it cannot be made: a line that names step and image, for all ranks to agree on."""

    message: str


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` images in an epoch."""
    return stream(seed, ORDER, epoch).permutation(count)


def element(seed: int, position: int, count: int) -> int:
    """The image, of `count`, at a position of the concatenated permutations."""
    epoch, index = divmod(position, count)
    return int(permutation(seed, epoch, count)[index])


def stream(seed: int, *numbers: int) -> np.random.Generator:
    """Random numbers of their own for each seed and purpose."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=numbers)))


@dataclass(frozen=True)
class RankSteps(Dataset):
    """A rank's batch of step t at index t, or the Fault why there is none."""

    config: Config
    images: tuple[Pair, ...]
    maps: SuperpixelMaps | None
    slots: tuple[int, ...]  # the rank's share of the global batch
    mean: tuple[float, float, float]

    def __getitem__(self, index: int) -> Batch | Fault:
        first, samples, names, name = index * self.config.train.batch_size, [], [], ""
        try:
            with one_thread():
                for slot in self.slots:
                    pair = self.images[element(self.config.seed, first + slot, len(self.images))]
                    name = pair.name
                    samples.append(self.sample(pair, stream(self.config.seed, AUGMENTATION, index, slot)))
                    names.append(name)
        except (UserError, OSError) as error:
            return Fault(f"step {index}: image {name}: {error}")
        images, labels, superpixels = zip(*samples, strict=True)
        return Batch(torch.stack(images), torch.stack(labels), None if self.maps is None else torch.stack(superpixels), tuple(names))

    def sample(self, pair: Pair, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """One augmented pair: image [3, H, W], labels [H, W] and superpixels [H, W]."""
        data, kept = self.config.data, self.config.launch.decoded
        labels_HW = decoded.label(pair) if kept else open_label(pair)
        geometry = augment.draw_geometry(rng, labels_HW, data)
        seen = augment.bands_view(decoded.image(pair), geometry) if kept else augment.image_view(open_image(pair), geometry)
        if data.jitter is not None:
            seen = augment.adjusted(seen, augment.draw_jitter(rng, data.jitter))
        superpixels = None
        if self.maps is not None:
            map_HW = decoded.superpixels(self.maps, pair) if kept else self.maps.open(pair)
            superpixels = augment.padded_map(augment.map_view(map_HW, geometry), data.crop, augment.NO_SUPERPIXEL)
        labels = augment.padded_map(augment.map_view(labels_HW, geometry), data.crop, augment.IGNORED)
        return augment.padded_image(seen, data.crop, self.mean), labels, superpixels


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, as data workers do: a sum over several would round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_batches(
    config: Config, prepared: Prepared, *, start: int, rank: int, world: int, mean: tuple[float, float, float], pin: bool
) -> Iterator[Batch | Fault]:
    """A rank's batches of the steps from `start` to the last, prepared ahead by the profile's data workers.

    `mean` is the colour of padding in [0, 1]; `pin` puts batches into page-locked memory. A Fault comes where a batch cannot be
    made. Raises UserError, at the call, for what is wrong with the training images or the superpixel set as a whole.
    """
    images = training_images(config, prepared)
    maps = None if config.superpixel_set is None else read_complete(config.superpixels, config.superpixel_set, images)
    if config.launch.decoded:
        decoded.refuse_small_disk(images, maps)
    if rank == 0:
        warn_of_padding(config, images)
    steps = RankSteps(config, images, maps, share(config.train, rank, world), mean)
    return guarded(started(steps, range(start, config.train.iterations), config.launch.workers, pin), start)


def share(train: Train, rank: int, world: int) -> tuple[int, ...]:
    """A rank's elements of the global batch: a consecutive share of each accumulated part.

    So each part holds the same images, and batch norm sees the same statistics, whatever the number of ranks.
    """
    part = train.batch_size // train.accumulate
    size = part // world
    assert size * world * train.accumulate == train.batch_size, "checked when params.yaml is read"
    return tuple(part * number + size * rank + index for number in range(train.accumulate) for index in range(size))


def training_images(config: Config, prepared: Prepared) -> tuple[Pair, ...]:
    """The pairs that are trained on: the split `train`, or those of it that the finetune names."""
    chosen = pairs(prepared, SPLIT)
    if config.finetune is not None and config.finetune.images is not None:
        known = {pair.name: pair for pair in chosen}
        if unknown := [name for name in config.finetune.images if name not in known]:
            few = known if len(known) <= 10 else [*list(known)[:10], "..."]
            place = f"finetunes.{config.name}.images"
            raise UserError(f"{place}: {unknown[0]!r} is no training image of {prepared.dataset}{suggestion(unknown[0], few)}")
        chosen = tuple(known[name] for name in dict.fromkeys(config.finetune.images))
    if not chosen:
        raise UserError(f"dataset {prepared.dataset} has no training images")
    return chosen


def warn_of_padding(config: Config, images: tuple[Pair, ...]) -> None:
    """Say once when the crop can be larger than a scaled image."""
    height, width = config.data.crop
    low = config.data.scale[0]
    sizes = ((pair, augment.scaled_size(pair.height, pair.width, low, config.data.ratio_base)) for pair in images)
    smaller = [(pair, size) for pair, size in sizes if size[0] < height or size[1] < width]
    if smaller:
        pair, size = smaller[0]
        one = f"{pair.name} is {size[0]} x {size[1]}"
        warn(f"crop {height} x {width} is larger than {len(smaller)} of {len(images)} images at scale {low} ({one}): they are padded")


def started(steps: RankSteps, numbers: range, workers: int, pin: bool) -> Iterator[Batch | Fault]:
    """The batches of the steps `numbers` in order, from `workers` processes (0: this one), which start now."""
    # On Linux a fork shares the imported modules, where a fresh process would import torch for seconds; workers use no CUDA.
    method = "fork" if sys.platform == "linux" else "spawn"
    handler = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside torch's threads, and of more workers than cores: the profile's choice
        loader = DataLoader(
            steps,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=begin_worker if workers else None,
            multiprocessing_context=method if workers else None,
            generator=torch.Generator(),  # the loader draws a number for its workers: not from the training's random state
        )
        batches = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # torch has a worker's death raise wherever the main thread happens to be; without it, `next` raises.
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return batches


def begin_worker(number: int) -> None:
    """What a data worker does first; torch has set it to one thread."""
    die_with_parent()


def guarded(batches: Iterator[Batch | Fault], step: int) -> Iterator[Batch | Fault]:
    """The batches from `step` on; a data worker that the system killed becomes a Fault, the last."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if not is_death(error):
                raise
            cause = "too little memory, or shared memory in /dev/shm"
            yield Fault(f"step {step}: the system killed a data worker ({cause}): lower `workers` in the launch profile and run it again")
            return
        yield batch if isinstance(batch, Fault) else batch._replace(names=tuple(batch.names))  # pinning makes it a list
        step += 1


def is_death(error: Exception) -> bool:
    """Whether an error is a data worker's death: torch's own words for it, or the end of the pipe that a batch comes through."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return "in DataLoader worker process" not in str(error)  # which is what torch writes before a worker's own exception


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """The batch on `device`, its image in channels-last order where asked; from pinned memory, without waiting."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    return Batch(
        batch.image.to(device, non_blocking=True, memory_format=layout),
        batch.labels.to(device, non_blocking=True),
        None if batch.superpixels is None else batch.superpixels.to(device, non_blocking=True),
        batch.names,
    )
