"""The evaluations that the report shows: read from results/ and runs/, and checked to be what params.yaml speaks of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.record import RESULTS
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.settings.schema import Config, Evaluation, Params

SHAPE = {"single_scale": dict, "multi_scale_flip": dict, "cost": dict, "per_seed": list, "seeds": list}


@dataclass(frozen=True)
class Entry:
    """One evaluation: what params.yaml says, what was measured, and the summaries of its trainings."""

    evaluation: Evaluation
    config: Config
    results: Mapping[str, Any]
    trainings: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The evaluation's name, by which the tables call the method."""
        return self.evaluation.name

    @property
    def images(self) -> tuple[str, str | None]:
        """Which images it was evaluated on: scores on different ones do not compare."""
        return self.evaluation.split, self.evaluation.match

    def value(self, *path: str) -> float | None:
        """A number of the results, the mean over the seeds; None where there is none."""
        return lookup(self.results, path)

    def spread(self, *path: str) -> float | None:
        """The standard deviation over the seeds; None for a single one, and for what results do not have of each."""
        found = self.results["per_seed"]
        if path[0] == "cost":
            found = self.results["cost"].get("per_seed") or [{"train_seconds": each.get("seconds")} for each in self.trainings]
            path = path[1:]
        values = [value for seed in found if (value := lookup(seed, path)) is not None]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def lookup(values: Any, path: Sequence[str]) -> float | None:
    """The number at a path of keys."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, int | float) and math.isfinite(values) else None


def warn_of_unused(params: Params) -> None:
    """Name the methods that the report will lack, with the line that brings them in."""
    used = {evaluation.of for evaluation in params.evaluations.values()}
    for name in [*params.methods, *params.finetunes]:
        if name not in used:
            warn(f"{params.path}: no evaluation names {name}, so the report lacks it; add under evaluations:  {name}: {{of: {name}}}")


def peers(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Those that were evaluated on the same images."""
    return [other for other in entries if other.images == entry.images]


def read(params: Params) -> list[Entry]:
    """Every evaluation's results, checked to be what params.yaml speaks of."""
    if not params.evaluations:
        raise UserError(f"{params.path}: evaluations is empty, so there is nothing to report; add for example  fcn: {{of: fcn}}")
    runs = {**params.methods, **params.finetunes}
    entries = []
    for name, evaluation in params.evaluations.items():
        file, again = RESULTS / f"{name}.json", f"run `uv run dvc repro evaluate@{name}`"
        results = files.read_json(file, again)
        for key, kind in SHAPE.items():
            if not isinstance(results, Mapping) or not isinstance(results.get(key), kind):
                raise UserError(f"{file} is damaged (it has no {key}): {again}")
        for key, wanted in {"dataset": params.data.dataset, "run": evaluation.of, "split": evaluation.split}.items():
            if results.get(key) != wanted:
                raise UserError(f"{file} is of the {key} {results.get(key)}, but params.yaml says {wanted}: {again}")
        weights = Path("runs") / evaluation.of / "weights"
        summaries = [weights / f"seed-{seed}.json" for seed in results["seeds"]]
        trainings = [files.read_json(path, f"run `uv run dvc repro train@{evaluation.of}`") for path in summaries if path.is_file()]
        entries.append(Entry(evaluation, runs[evaluation.of], results, trainings))
    return entries
