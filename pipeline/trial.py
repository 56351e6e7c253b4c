"""One trial of a search: a small project folder of its own, trained and scored.

    tune/<search>/trials/<hash of the values>/    params.yaml with the values in it; data/, runs/ and results/ as in any project

Images, labels and superpixels stay in the one store, so that trials which run at the same time share the work, and a set of superpixels
is computed once, whoever needs it first. A trial trains by the same function as everything else and goes on from its checkpoints, so that
a killed search goes on in the middle of its trials. The score is the mIoU at a single scale, of images that nothing else reports: a split
of their own, or a share of the training images that the trial does not train on.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline import checkpoint, files, prepared, runs, stopping, store, superpixels
from pipeline import config as configs
from pipeline import fingerprint as fingerprints
from pipeline.check import check
from pipeline.errors import words
from pipeline.prepared import Pair
from pipeline.profiles import Launch
from pipeline.schema import Config, Evaluation
from pipeline.search import Search, Value, patched

HELD_OUT = "held_out"  # the split of the training images that a trial does not train on
RECORD = "trial.json"
SCORE = "score"  # the evaluation of a trial


@dataclass(frozen=True)
class Trial:
    """Values, and where they are trained. All that a process needs that was started for it."""

    root: Path  # the project's folder
    folder: Path
    search: Search
    values: Mapping[str, Value]
    launch: Launch

    @classmethod
    def of(cls, root: Path, folder: Path, search: Search, values: Mapping[str, Value], launch: Launch) -> "Trial":
        """The trial of these values in a search's folder: equal values are one trial. One process trains it, where it is started."""
        name = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        alone = replace(launch, backend="local", nodes=1, processes=1, slurm=None, ray=None, bars=False, tracking=False)
        return cls(root.absolute(), folder.absolute() / "trials" / name, search, values, alone)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Config, Evaluation]]:
        """Inside, the trial's folder is the current one and has its data: the stamped config of its run, and how it is scored."""
        place = self.root / configs.PARAMS
        content = located(patched(yaml.safe_load(place.read_text()), self.values, place), self.root)
        files.write_bytes(self.folder / configs.PARAMS, yaml.safe_dump(content, sort_keys=False).encode())
        with variable("DATA_STORE", str((self.root / store.root()).absolute())), contextlib.chdir(self.folder):
            params = configs.load(launch=self.launch)
            check(params)
            config = {**params.methods, **params.finetunes}[self.search.run]
            split = self.publish_data(config)
            first = next(iter(params.evaluations.values()))
            score = replace(first, name=SCORE, of=config.name, split=split, scales=(1.0,), flip=False, match=None, dense_crf=None)
            yield fingerprints.stamp(config), score

    def publish_data(self, config: Config) -> str:
        """Write the manifests of the trial's data, and make the superpixels that it needs; returns the split that is scored."""
        manifest, split = prepared.read(self.root / store.PREPARED), self.search.split or HELD_OUT
        splits = dict(manifest.splits)
        if split == HELD_OUT:
            splits["train"], splits[HELD_OUT] = parted(splits["train"], self.search.held_out, self.search.seed)
        kept = {name: splits[name] for name in ("train", split)}
        prepared.write(replace(manifest, splits=kept))
        pairs = [pair for name in kept for pair in kept[name]] if config.superpixel_set else []
        superpixels.publish(config.superpixels, config.superpixel_set, pairs)
        return split


def parted(pairs: Sequence[Pair], share: float, seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The pairs without a random share of them, and that share, at least one each; the same for every trial."""
    count = min(max(1, round(share * len(pairs))), len(pairs) - 1)
    held = {pair.name for pair in random.Random(seed).sample(list(pairs), count)}
    return tuple(pair for pair in pairs if pair.name not in held), tuple(pair for pair in pairs if pair.name in held)


def located(content: dict, root: Path) -> dict:
    """params.yaml's content with the paths that are relative to the project's folder made absolute."""
    places = [content["data"], content["backbone"], *content["methods"].values(), *(content.get("finetunes") or {}).values()]
    places += [run["backbone"] for run in places if isinstance(run.get("backbone"), dict)]
    for place in places:
        for key in ("root", "from", "pretrained"):
            if isinstance(place.get(key), str) and (root / place[key]).exists():
                place[key] = str(root / place[key])
    return content


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """An environment variable, for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def rungs(search: Search, iterations: int, every: int) -> list[int]:
    """The steps after which a trial is scored, multiples of `every` (the steps between records); the last is the end."""
    found, step = [iterations], search.grace * iterations
    while search.asha and step < iterations:
        found.append(min(iterations, math.ceil(step / every) * every))
        step *= search.reduction
    return sorted(set(found))


def scores(trial: Trial) -> Iterator[tuple[int, float]]:
    """Train and score in turns: (steps, mIoU) at each rung. What was scored before a kill is not done again.

    trial.json in the trial's folder keeps its values, its scores by steps, its seconds, and the reason where it failed.
    """
    from pipeline.evaluation import RESULTS, evaluate

    place, began = trial.folder / RECORD, time.monotonic()
    content: dict[str, Any] = {"values": dict(trial.values), "fingerprint": None, "scores": {}, "seconds": 0.0, "failure": None}
    try:
        with trial.opened() as (config, evaluation):
            before = files.read_json(place, "delete it") if place.exists() else {}
            mine = fingerprints.fingerprint(config)
            if before.get("fingerprint") == mine:
                content |= {"scores": before["scores"], "seconds": before["seconds"]}
            content["fingerprint"], known, earlier = mine, content["scores"], content["seconds"]
            for rung in rungs(trial.search, config.train.iterations, config.launch.log_every):
                if str(rung) not in known:
                    train_to(config, rung)
                    evaluate(evaluation)
                    found = files.read_json(RESULTS / f"{SCORE}.json", "run the search again")["single_scale"]["miou"]
                    known[str(rung)] = float(found or 0.0)
                    files.write_json(place, content | {"seconds": earlier + time.monotonic() - began})
                yield rung, known[str(rung)]
    except Exception as error:
        files.write_json(place, content | {"failure": words(error) or f"{type(error).__name__}: {error}"})
        raise


def train_to(config: Config, rung: int) -> None:
    """Train until `rung` steps are done, and publish the weights as they then are."""
    from pipeline.trainer import train

    def report(row: Mapping[str, float]) -> None:
        if rung <= row["step"] < config.train.iterations:
            stopping.asked.set()

    try:
        train(config, report)
        runs.collect(config, [config])
    except stopping.StoppedError:
        publish(config)
    finally:
        stopping.asked.clear()


def publish(config: Config) -> None:
    """Put the newest checkpoint's weights where an evaluation reads them."""
    import torch

    found = checkpoint.latest(runs.checkpoint_folder(config))
    assert found is not None
    _, state = found
    payload = checkpoint.weights_payload(
        config, prepared.read().classes, fingerprints.fingerprint(config), state["averaged"] or state["model"]
    )
    place = config.folder / "weights" / f"seed-{config.seed}.pt"
    with files.replacing(place) as file:
        torch.save(payload, file)
    files.write_json(place.with_suffix(".json"), {"seconds": state["seconds"]})
