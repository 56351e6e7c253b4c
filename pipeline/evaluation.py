"""Evaluate a run's seeds on a split: every image once, whatever the number of processes, and one results file.

Each rank predicts its share of the images. Counts are integers and are summed; boundary scores are kept for each image and put
in the images' order before they are averaged; so the result does not depend on the ranks.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image

from pipeline import cost, files, mirror, pictures, record, store
from pipeline import prepared as preparation
from pipeline.checkpoint import Weights, read_weights
from pipeline.dense_crf import record as crf_record
from pipeline.distributed import agree, process_group, rank, world
from pipeline.errors import UserError
from pipeline.inference import predict
from pipeline.metrics import VOID, mean_scores
from pipeline.monitor import device_name
from pipeline.prepared import Pair, Prepared
from pipeline.progress import track
from pipeline.restored import check_belongs, restored
from pipeline.schema import Evaluation
from pipeline.superpixels import SuperpixelMaps, read_set
from pipeline.tally import PROTOCOLS, Tally, adjacent_cosine
from pipeline.windows import Network

RESULTS = Path("results")
AGREE_EVERY = 8  # images of a rank between two questions whether all ranks are well

Areas = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # of a seed: see `Tally.areas`
Report = Callable[[Mapping[str, float]], None]
T = TypeVar("T")


def silent(metrics: Mapping[str, float]) -> None:
    """The report of a launcher that needs none."""


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


def evaluate(evaluation: Evaluation, report: Report = silent) -> None:
    """Evaluate all published seeds of a run and write results/<name>.json and results/<name>/pictures.

    Every rank calls this. A user's mistake that one rank meets is raised as UserError by all; `report` gets the mean scores, on
    every rank once.
    """
    with process_group(evaluation.launch) as device:
        task = together(lambda: gather_task(evaluation, device))
        per_seed, costs, cosines, areas, fingerprints = [], [], [], [], {}
        for number, seed in enumerate(task.seeds):
            weights, network = together(lambda seed=seed: load(task, seed))
            tally = count(task, seed, weights, network)
            per_seed.append({"seed": seed, **tally.protocols(task.prepared.classes, evaluation.radii)})
            costs.append(costs_of(task, seed, weights, network, tally.speed()))
            fingerprints[seed] = weights.fingerprint
            areas.append(tally.areas())
            cosines.append(adjacent_cosine(weights.state["crf.classifier.weight"].flatten(1), tally.neighbours_KK))
            if number == 0:
                first, counted = weights, tally
        content = results(task, per_seed, costs, cosines)
        together(lambda: write(task, content, record_of(task, areas, counted, fingerprints), first, counted.predictions))
        if rank() == 0:
            folder = RESULTS / evaluation.name / "pictures"
            mirror.mirror_results(task.prepared.dataset, content, fingerprints, folder, enabled=evaluation.launch.tracking)
        report(flat({protocol: content[protocol] for protocol in PROTOCOLS}))


def together(action: Callable[[], T]) -> T:
    """`action()` on every rank; a UserError of one is raised by all."""
    result, fault = None, None
    try:
        result = action()
    except UserError as error:
        fault = str(error)
    if (agreed := agree(fault)) is not None:
        raise UserError(agreed)
    return result  # type: ignore[return-value]


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


def load(task: Task, seed: int) -> tuple[Weights, Network]:
    """A seed's weights and its network on the device, refusing what does not belong to the data as it is now."""
    path = task.seeds[seed]
    weights = read_weights(path)
    stage = "train" if weights.config.finetune is None else "finetune"
    again = f"train again with `uv run dvc repro {stage}@{task.evaluation.of}`"
    check_belongs(weights, path, task.prepared, again)
    return weights, restored(weights, path, task.device, again)


def count(task: Task, seed: int, weights: Weights, network: Network) -> Tally:
    """Predict this rank's images and count; all ranks end with the counts of all images."""
    images, radii = len(task.pairs), task.evaluation.radii
    tally = Tally.empty(images, len(radii), len(task.prepared.classes))
    drawn = set(pictures.chosen(images))
    kept = record.kept(images) if seed == min(task.seeds) else frozenset()
    cost.forget_peak(task.device)
    examples = loaded(task, weights, range(rank(), images, world()))
    fault: str | None = None
    for turn, index in enumerate(turns(task, seed)):
        if index < images and fault is None:
            try:
                example = next(examples)
                prediction = predict(network, example.image, example.superpixels_HW, task.evaluation, len(weights.classes))
                tally.add(index, prediction, example.labels_HW, radii)
                if index in drawn:
                    tally.predictions[index] = prediction.multi_HW
                if index in kept:
                    tally.maps[index] = record.packed(prediction.multi_HW)
            except ValueError as error:  # a label or a size that the metrics or the network refuse
                fault = str(error) if isinstance(error, UserError) else f"{task.pairs[index].name}: {error}"
        due = world() == 1 or turn % AGREE_EVERY == 0 or index + world() - rank() >= images
        if due and (agreed := agree(fault)) is not None:
            raise UserError(agreed)
    tally.gather()
    return tally


def turns(task: Task, seed: int) -> Iterator[int]:
    """The index of this rank's image in each turn, equally many on every rank: the last may be beyond the images."""
    indices = range(rank(), -(-len(task.pairs) // world()) * world() + rank(), world())
    if rank() or not task.evaluation.launch.bars:
        return iter(indices)
    unit = "images" if world() == 1 else f"images on each of {world()} ranks"
    return track(indices, len(indices), f"evaluate {task.evaluation.name}, seed {seed}", unit=unit)


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


def costs_of(task: Task, seed: int, weights: Weights, network: Network, speed: float | None) -> dict[str, float | None]:
    """The cost section of one seed."""
    peak = torch.tensor(cost.peak_memory(task.device))  # before the operations are counted, which takes memory of its own
    if world() > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    summary = files.read_json(task.seeds[seed].with_suffix(".json"), f"run `uv run dvc repro train@{task.evaluation.of}`")
    size = cost.usual_size([(pair.height, pair.width) for pair in task.pairs])
    flops = cost.flops(network, size, task.evaluation, superpixels=weights.config.superpixel_set is not None)
    if task.evaluation.dense_crf is not None:
        usual = next(pair for pair in task.pairs if (pair.height, pair.width) == size)
        flops += cost.crf_flops(preparation.open_image(usual), len(weights.classes), task.evaluation.dense_crf, task.device)
    return {
        "parameters": cost.parameters(network),
        "flops": flops,
        "images_per_second": speed,
        "peak_memory_bytes": int(peak),
        "train_seconds": summary.get("seconds"),
    }


def results(
    task: Task, per_seed: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, float | None]], cosines: Sequence[float | None]
) -> dict[str, Any]:
    """The results file's content: means over seeds, and each seed's."""
    whole = {key: int(costs[0][key] or 0) for key in ("parameters", "flops")}  # the same for every seed
    crf = task.evaluation.dense_crf
    peak = max(int(entry["peak_memory_bytes"] or 0) for entry in costs)
    return {
        "evaluation": task.evaluation.name,
        "run": task.evaluation.of,
        "dataset": task.prepared.dataset,
        "split": task.evaluation.split,
        "images": len(task.pairs),
        "seeds": list(task.seeds),
        **({"dense_crf": crf_record(crf, [pair.height * pair.width for pair in task.pairs], task.device)} if crf else {}),
        **{protocol: mean_scores([entry[protocol] for entry in per_seed]) for protocol in PROTOCOLS},
        "per_seed": list(per_seed),
        "cost": mean_scores([dict(entry) for entry in costs]) | whole | {"peak_memory_bytes": peak},
        "adjacent_class_weight_cosine": mean_scores(list(cosines)),
    }


def record_of(task: Task, areas: Sequence[Areas], first: Tally, fingerprints: Mapping[int, str]) -> record.Record:
    """The counts of all seeds with the first one's predictions."""
    confusion_SPKK, hits_SPNK, unions_SPNK = (np.stack(arrays) for arrays in zip(*areas, strict=True))
    about = record.about(device_name(task.device), fingerprints, files.sha256(store.PREPARED))
    names = tuple(pair.name for pair in task.pairs)
    return record.Record(names, confusion_SPKK, hits_SPNK, unions_SPNK, first.labelled_NK, first.maps, about)


def write(
    task: Task, content: Mapping[str, Any], counts: record.Record, weights: Weights, predictions: Mapping[int, NDArray[np.uint8]]
) -> None:
    """Publish the counts and the pictures of the first seed's predictions, then the results file: it is there only when all is done."""
    if rank() > 0:
        return
    palette, folder = task.prepared.palette, RESULTS / task.evaluation.name
    drawn, indices = [], sorted(predictions)
    for index, example in zip(indices, loaded(task, weights, indices), strict=True):
        ids_HW = predictions[index]
        panel = pictures.panel(example.image, example.labels_HW, ids_HW, palette, example.superpixels_HW)
        drawn.append((task.pairs[index].name, panel, ids_HW))
    pictures.write(folder / "pictures", task.prepared, drawn)
    pictures.save(pictures.grid([(name, panel) for name, panel, _ in drawn], task.prepared), folder / pictures.GRID)
    record.write(folder / record.NAME, counts)
    files.write_json(RESULTS / f"{task.evaluation.name}.json", content)


def flat(values: Mapping[str, Any], place: str = "") -> dict[str, float]:
    """Nested numbers as one mapping, keys joined by /; None left out."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{place}{key}/")
        elif value is not None:
            found[f"{place}{key}"] = float(value)
    return found
