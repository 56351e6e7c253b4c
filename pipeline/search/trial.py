"""One trial of a search: a small project folder of its own, trained and scored.

    tune/search-<fingerprint>/trials/<hash of the values>/    params.yaml with the values in it; data/, runs/ and results/ as in any project

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pipeline.data import prepared
from pipeline.data.prepared import Pair
from pipeline.evaluation import record
from pipeline.ground import files, stopping, store
from pipeline.ground.errors import UserError, words
from pipeline.runs import fingerprint as fingerprints
from pipeline.runs import folders
from pipeline.search.space import SCORE, Search, Value, patched
from pipeline.settings import config as configs
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Config, Evaluation
from pipeline.superpixels import sets
from pipeline.training import checkpoint

HELD_OUT = "held_out"  # the split of the training images that a trial does not train on
RECORD = "trial.json"


@dataclass(frozen=True)
class Trial:
    """Values, and where they are trained. All that a process needs that was started for it."""

    root: Path  # the project's folder
    folder: Path
    search: Search
    values: Mapping[str, Value]
    launch: Launch
    raw: Mapping[str, Any]  # params.yaml as it was when the search began
    data: str  # the SHA-256 of data/prepared.json then

    @classmethod
    def of(cls, root: Path, folder: Path, search: Search, values: Mapping[str, Value], launch: Launch) -> "Trial":
        """The trial of these values in a search's folder: equal values are one trial. It runs on the node where it is started."""
        alone = replace(launch, backend="local", nodes=1, slurm=None, ray=None, bars=False, tracking=False)
        raw, data = yaml.safe_load((root / configs.PARAMS).read_text()), files.sha256(root / store.PREPARED)
        return cls(root.absolute(), place(folder.absolute(), values), search, values, alone, raw, data)

    def at(self, values: Mapping[str, Value]) -> "Trial":
        """Another trial of the same search."""
        return replace(self, values=values, folder=place(self.folder.parents[1], values))

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Config, Evaluation]]:
        """Inside, the trial's folder is the current one and has its data: the stamped config of its run, and how it is scored."""
        if files.sha256(self.root / store.PREPARED) != self.data:
            raise UserError(f"{store.PREPARED} has changed since the search began: stop it and start it again")
        content = located(patched(self.raw, self.search.run, self.values, self.root / configs.PARAMS), self.root)
        files.write_bytes(self.folder / configs.PARAMS, yaml.safe_dump(content, sort_keys=False).encode())
        with variable("DATA_STORE", str((self.root / store.root()).absolute())), contextlib.chdir(self.folder):
            params = configs.load(launch=self.launch)
            config = {**params.methods, **params.finetunes}[self.search.run]
            split = self.publish_data(config)
            score = replace(params.evaluations[SCORE], split=split, scales=(1.0,), flip=False, match=None, dense_crf=None)
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
        sets.publish(config.superpixels, config.superpixel_set, pairs)
        return split


def place(folder: Path, values: Mapping[str, Value]) -> Path:
    """Where a search keeps the trial of these values."""
    return folder / "trials" / hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:12]


def parted(pairs: Sequence[Pair], share: float, seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The pairs without a random share of them, and that share, at least one each; the same for every trial."""
    count = min(max(1, round(share * len(pairs))), len(pairs) - 1)
    held = {pair.name for pair in random.Random(seed).sample(list(pairs), count)}
    return tuple(pair for pair in pairs if pair.name not in held), tuple(pair for pair in pairs if pair.name in held)


def located(content: dict, root: Path) -> dict:
    """params.yaml's content with the paths that are relative to the project's folder made absolute."""
    places = [content["data"], content["backbone"], *content["methods"].values(), *content["finetunes"].values()]
    places += [run["backbone"] for run in places if isinstance(run.get("backbone"), dict)]
    for entry in places:
        for key in ("root", "from", "pretrained"):
            if isinstance(entry.get(key), str) and (root / entry[key]).exists():
                entry[key] = str(root / entry[key])
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


def here(work: Callable[[Any], None], config: Any) -> None:
    """The launcher of a trial of one process."""
    work(config)


def scores(trial: Trial, launch: Callable[[Callable[[Any], None], Any], None] = here) -> Iterator[tuple[int, int, float]]:
    """Train and score in turns: (index of the rung, steps, mIoU) of each that was not scored before. `launch` starts its processes.

    trial.json in the trial's folder keeps its values, its scores by steps, all its steps, its seconds, and the reason where it failed.
    """
    from pipeline.evaluation.evaluate import evaluate

    began = time.monotonic()
    content: dict[str, Any] = {"values": dict(trial.values), "fingerprint": None, "scores": {}, "seconds": 0.0, "failure": None}
    with files.locked(trial.folder / "lock", str(trial.folder), wait=True):  # of a killed search the last process may still be ending
        try:
            with trial.opened() as (config, evaluation):
                before = files.read_json(trial.folder / RECORD, "delete it") if (trial.folder / RECORD).exists() else {}
                mine = fingerprints.fingerprint(config)
                if before.get("fingerprint") == mine:
                    content |= {"scores": before["scores"], "seconds": before["seconds"]}
                content |= {"fingerprint": mine, "iterations": config.train.iterations}
                known, earlier = content["scores"], content["seconds"]
                for index, rung in enumerate(rungs(trial.search, config.train.iterations, config.launch.log_every)):
                    if str(rung) not in known:
                        train_to(config, rung, launch)
                        launch(evaluate, evaluation)
                        known[str(rung)] = score_of(trial)
                        files.write_json(trial.folder / RECORD, content | {"seconds": earlier + time.monotonic() - began})
                        yield index, rung, known[str(rung)]
        except Exception as error:
            reason = words(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            files.write_json(trial.folder / RECORD, content | {"failure": reason})
            raise


def score_of(trial: Trial) -> float:
    """The mIoU that the evaluation left; without a class to score it is 0."""
    return float(files.read_json(trial.folder / record.RESULTS / f"{SCORE}.json", "run the search again")["single_scale"]["miou"] or 0.0)


def train_to(config: Config, rung: int, launch: Callable[[Callable[[Any], None], Any], None]) -> None:
    """Train until `rung` steps are done, and publish the weights as they then are."""
    found = checkpoint.latest(folders.checkpoint_folder(config))
    if found is None or found[0] < rung:  # else it was killed between the two
        launch(partial(train_until, rung=rung), config)
    if rung < config.train.iterations:
        publish(config)
    else:
        folders.collect(config, [config])


def train_until(config: Config, rung: int) -> None:
    """Train, and stop with a checkpoint after `rung` steps; every rank calls this."""
    from pipeline.runs.trainer import train

    def report(row: Mapping[str, float]) -> None:
        if rung <= row["step"] < config.train.iterations:
            stopping.asked.set()

    stopping.asked.clear()
    try:
        train(config, report)
    except stopping.StoppedError:
        pass
    finally:
        stopping.asked.clear()


def publish(config: Config) -> None:
    """Put the newest checkpoint's weights where an evaluation reads them."""
    import torch

    found = checkpoint.latest(folders.checkpoint_folder(config))
    assert found is not None
    _, state = found
    payload = checkpoint.weights_payload(
        config, prepared.read().classes, fingerprints.fingerprint(config), state["averaged"] or state["model"]
    )
    goal = config.folder / "weights" / f"seed-{config.seed}.pt"
    with files.replacing(goal) as file:
        torch.save(payload, file)
    files.write_json(goal.with_suffix(".json"), {"seconds": state["seconds"]})
