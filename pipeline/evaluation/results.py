"""What an evaluation leaves: its results file, the counts of every image, and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pipeline.data import prepared as preparation
from pipeline.evaluation import cost, pictures, record
from pipeline.evaluation.dense_crf import record as crf_record
from pipeline.evaluation.examples import Task, loaded
from pipeline.evaluation.metrics import mean_scores
from pipeline.evaluation.tally import PROTOCOLS, Tally
from pipeline.evaluation.windows import Network
from pipeline.ground import files, store
from pipeline.runs.monitor import device_name
from pipeline.training.checkpoint import Weights
from pipeline.training.distributed import rank, world

Areas = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # of a seed: see `Tally.areas`

MEASURED = ("images_per_second", "peak_memory_bytes", "train_seconds")  # of each seed; its other costs are the method's


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
    seeds = [{"seed": seed} | {key: entry[key] for key in MEASURED} for seed, entry in zip(task.seeds, costs, strict=True)]
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
        "cost": mean_scores([dict(entry) for entry in costs])
        | whole
        | {"peak_memory_bytes": peak}
        | ({"per_seed": seeds} if len(seeds) > 1 else {}),
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
    palette, folder = task.prepared.palette, record.RESULTS / task.evaluation.name
    drawn, indices = [], sorted(predictions)
    for index, example in zip(indices, loaded(task, weights, indices), strict=True):
        ids_HW = predictions[index]
        panel = pictures.panel(example.image, example.labels_HW, ids_HW, palette, example.superpixels_HW)
        drawn.append((task.pairs[index].name, panel, ids_HW))
    pictures.write(folder / "pictures", task.prepared, drawn)
    pictures.save(pictures.grid([(name, panel) for name, panel, _ in drawn], task.prepared), folder / pictures.GRID)
    record.write(folder / record.NAME, counts)
    files.write_json(record.RESULTS / f"{task.evaluation.name}.json", content)
