"""What an evaluation reads: its images, their labels and superpixels, and the weights of its seeds."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import prepared as preparation
from pipeline.data.prepared import Pair, Prepared
from pipeline.data.superpixel_maps import SuperpixelMaps, read_set
from pipeline.evaluation.metrics import VOID
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Evaluation
from pipeline.training.checkpoint import Weights


@dataclass(frozen=True)
class Task:
    """What all seeds of an evaluation share."""

    evaluation: Evaluation
    prepared: Prepared
    pairs: tuple[Pair, ...]
    seeds: Mapping[int, Path]  # the weights file of each
    device: torch.device


@dataclass(frozen=True)
class Example:
    """One loaded image with its labels (H, W) and, where the run has them, superpixels (H, W)."""

    image: Image.Image
    labels_HW: NDArray[np.uint8]
    superpixels_HW: NDArray[np.int32] | None


def gather_task(evaluation: Evaluation, device: torch.device) -> Task:
    """Read what is evaluated, refusing what is not there."""
    prepared = preparation.read()
    pairs = preparation.pairs(prepared, evaluation.split)
    if evaluation.match is not None:
        pairs = tuple(pair for pair in pairs if fnmatchcase(pair.name, evaluation.match))
    if not pairs:
        which = "" if evaluation.match is None else f" that match {evaluation.match!r}"
        raise UserError(f"split {evaluation.split} of {prepared.dataset} has no images{which} to evaluate {evaluation.name} on")
    if len(prepared.classes) > VOID:
        raise UserError(f"{prepared.dataset} has {len(prepared.classes)} classes; label maps hold {VOID} at most")
    folder = Path("runs") / evaluation.of / "weights"
    seeds = {int(path.stem.removeprefix("seed-")): path for path in folder.glob("seed-*.pt") if path.stem.removeprefix("seed-").isdigit()}
    if not seeds:
        raise UserError(f"run {evaluation.of} has no weights: uv run dvc repro train@{evaluation.of}")
    return Task(evaluation, prepared, pairs, dict(sorted(seeds.items())), device)


def loaded(task: Task, weights: Weights, indices: Sequence[int]) -> Iterator[Example]:
    """The examples in order, the next ones read by threads while one is in use."""
    maps = read_set(weights.superpixels["set"]) if weights.config.superpixel_set is not None else None
    workers = max(1, task.evaluation.launch.workers)
    coming = iter(indices)
    with ThreadPoolExecutor(workers) as pool:
        queue: deque[Future[Example]] = deque(pool.submit(read, task.pairs[index], maps) for index in islice(coming, workers + 1))
        try:
            while queue:
                example = queue.popleft().result()
                queue.extend(pool.submit(read, task.pairs[index], maps) for index in islice(coming, 1))
                yield example
        finally:
            pool.shutdown(cancel_futures=True)


def read(pair: Pair, maps: SuperpixelMaps | None) -> Example:
    """One pair from the store."""
    return Example(preparation.open_image(pair), preparation.open_label(pair), None if maps is None else maps.open(pair))
