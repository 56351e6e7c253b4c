"""Evaluate a run's seeds on a split: every image once, whatever the number of processes, and one results file.

Each rank predicts its share of the images. Counts are integers and are summed; boundary scores are kept for each image and put
in the images' order before they are averaged; so the result does not depend on the ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pipeline.evaluation import cost, pictures, record
from pipeline.evaluation.examples import Task, gather_task, loaded
from pipeline.evaluation.inference import predict
from pipeline.evaluation.restored import check_belongs, restored
from pipeline.evaluation.results import costs_of, record_of, results, write
from pipeline.evaluation.tally import PROTOCOLS, Tally, adjacent_cosine
from pipeline.evaluation.windows import Network
from pipeline.ground.errors import UserError
from pipeline.ground.progress import track
from pipeline.settings.schema import Evaluation
from pipeline.tracking import mirror
from pipeline.training.checkpoint import Weights, read_weights
from pipeline.training.distributed import agree, process_group, rank, world
from pipeline.training.loop import Report, silent

AGREE_EVERY = 8  # images of a rank between two questions whether all ranks are well

T = TypeVar("T")


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
            folder = record.RESULTS / evaluation.name / "pictures"
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


def flat(values: Mapping[str, Any], place: str = "") -> dict[str, float]:
    """Nested numbers as one mapping, keys joined by /; None left out."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{place}{key}/")
        elif value is not None:
            found[f"{place}{key}"] = float(value)
    return found
