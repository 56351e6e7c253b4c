"""Evaluations of made-up methods, as the report finds them: params.yaml, data, results with their records, and trainings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from makers.stored import put_pair
from PIL import Image

from pipeline.data import prepared
from pipeline.evaluation import pictures, record
from pipeline.evaluation.metrics import mean_scores, scores
from pipeline.ground import files, store
from pipeline.labels.palette import distinct

ROOT = Path(__file__).parents[2]
RADII = (1, 3, 5)


def split(names: Sequence[str], classes: int, size: tuple[int, int], labels: int) -> list[prepared.Pair]:
    """Pairs of `names` whose files are `labels` different ones, taken in turn: stripes of classes, and a strip of void."""
    height, width = size
    files_ = []
    for number in range(labels):
        rng = np.random.default_rng(number)
        ids = rng.permutation(classes)[: min(classes, 6)]
        labels_HW = np.repeat(ids[np.arange(width) * len(ids) // width][None], height, 0).astype(np.uint8)
        labels_HW[: height // 8] = 255
        image = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        files_.append(put_pair(f"{number}", image, labels_HW))
    found = (files_[index % labels] for index in range(len(names)))
    return [prepared.Pair(name, pair.image, pair.label, height, width) for name, pair in zip(names, found, strict=True)]


def measured(pairs: Sequence[prepared.Pair], classes: int, seeds: int, quality: float, rng: np.random.Generator) -> record.Record:
    """A record of predictions that are the labels but for a share of columns, which are taken for the next class."""
    S, N, K = seeds, len(pairs), classes
    different = {pair.label: pair for pair in pairs}
    areas = {name: np.bincount(prepared.open_label(pair).ravel(), minlength=256)[:K] for name, pair in different.items()}
    labelled_NK = np.stack([areas[pair.label] for pair in pairs])
    share = np.clip(quality + 0.2 * rng.standard_normal((S, 2, N, K)), 0, 1)
    hits = (labelled_NK * share).astype(np.int64)
    missed = labelled_NK - hits
    confusion = np.zeros((S, 2, K, K), np.int64)
    confusion[..., np.arange(K), (np.arange(K) + 1) % K] += missed.sum(2)
    confusion[..., np.arange(K), np.arange(K)] += hits.sum(2)
    maps = {name: record.packed(shifted(prepared.open_label(pair), K, quality, rng)) for name, pair in different.items()}
    about = record.about("a machine", {seed: f"f{seed}" for seed in range(S)}, files.sha256(store.PREPARED))
    unions = labelled_NK + np.roll(missed, 1, -1)
    kept = {index: maps[pair.label] for index, pair in enumerate(pairs)}
    return record.Record(tuple(pair.name for pair in pairs), confusion, hits, unions, labelled_NK, kept, about)


def shifted(labels_HW: np.ndarray, classes: int, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Labels as a prediction in which some columns are of the next class."""
    wrong = rng.random(labels_HW.shape[1]) > quality
    return np.where(wrong, (labels_HW.astype(np.int64) + 1) % classes, labels_HW % classes).astype(np.uint8)


def protocols(counts: record.Record, seed: int, classes: Sequence[str]) -> dict[str, Any]:
    """The scores that follow from a record's counts; boundary F is made up."""
    found = {}
    for number, name in enumerate(("single_scale", "multi_scale_flip")):
        values = scores(counts.confusion_SPKK[seed, number], classes)
        boundary = {str(radius): {"present": values["miou"] * (1 - 0.5 / radius), "gscnn": values["miou"]} for radius in RADII}
        found[name] = values | {"boundary_f": boundary}
    return found


def write(name: str, run: str, counts: record.Record, classes: Sequence[str], place: int, split_: str = "val") -> None:
    """The results of an evaluation, with its record, and the trainings of its seeds."""
    seeds = list(range(len(counts.confusion_SPKK)))
    per_seed = [{"seed": seed} | protocols(counts, seed, classes) for seed in seeds]
    means = mean_scores([{key: value for key, value in one.items() if key != "seed"} for one in per_seed])
    seconds = [3000.0 + 700 * place + 40 * seed for seed in seeds]
    each = [{"seed": seed, "images_per_second": 30.0 / (place + 1) + seed, "train_seconds": seconds[seed]} for seed in seeds]
    cost = {"parameters": 10**6 * (place + 3), "flops": 2 * 10**9 * (place % 4 + 1), "peak_memory_bytes": 2**30}
    cost |= {key: sum(one[key] for one in each) / len(each) for key in ("images_per_second", "train_seconds")}
    cost |= {"per_seed": each} if len(each) > 1 else {}
    about = {"evaluation": name, "run": run, "dataset": "scenes", "split": split_, "images": len(counts.names), "seeds": seeds}
    files.write_json(Path(f"results/{name}.json"), about | means | {"per_seed": per_seed, "cost": cost})
    record.write(Path(f"results/{name}/images.npz"), counts)
    for seed in seeds:
        weights = Path(f"runs/{run}/weights")
        summary = {"steps": 400, "device": "a GPU", "peak_memory_bytes": 2**20, "seconds": seconds[seed], "seed": seed}
        files.write_json(weights / f"seed-{seed}.json", summary)
        rows = "".join(f"{step},{2 + place / 9 - step / 500},0.1\n" for step in range(10, 410, 10))
        files.write_bytes(weights / f"seed-{seed}.csv", f"step,loss,lr\n{rows}".encode())


def project(
    methods: Sequence[str],
    classes: Sequence[str],
    images: Sequence[str],
    *,
    seeds: int = 1,
    size: tuple[int, int] = (40, 64),
    labels: int = 3,
) -> None:
    """A project in the current folder whose evaluations, called as their methods, are all there; the first is the weakest."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    part = {"head": {"name": "fcn", "width": 128}, "crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "none"}
    params["methods"] = dict.fromkeys(methods, part)
    params["evaluations"] = {name: {"of": name} for name in methods}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    pairs = split(images, len(classes), size, labels)
    prepared.write(prepared.Prepared("scenes", tuple(classes), distinct(len(classes)), {"train": tuple(pairs[:1]), "val": tuple(pairs)}))
    for place, name in enumerate(methods):
        rng = np.random.default_rng(place)
        counts = measured(pairs, len(classes), seeds, 0.4 + 0.5 * place / max(1, len(methods) - 1), rng)
        write(name, name, counts, classes, place)
        for index in pictures.chosen(len(pairs)):
            file = Path(f"results/{name}/pictures/{pictures.safe_name(pairs[index].name)}.prediction.png")
            shown_HW = counts.prediction(index)
            assert shown_HW is not None
            large_HW = np.asarray(Image.fromarray(shown_HW).resize((size[1], size[0]), Image.Resampling.NEAREST))
            pictures.save(pictures.indexed(large_HW, distinct(len(classes))), file)
