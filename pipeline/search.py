"""The section `tune` of params.yaml: a search over any of its numbers, by their paths.

tune:
run: ecrf
space:
superpixels.slic.segments: {low: 50, high: 400, log: true, whole: true}
methods.ecrf.crf.normalization: {values: [none, count]}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import config as configs
from pipeline import files, store
from pipeline.errors import UserError
from pipeline.ranges import Positive, Real, Whole
from pipeline.schema import Params
from pipeline.strict import Section, names, suggestion

Value = int | float | str | bool | None


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of one number: from low to high, both among them, or one of a list."""

    low: Real | None = None
    high: Real | None = None
    log: bool = False  # whether equal ratios are equally likely, instead of equal differences
    whole: bool = False  # integers only
    values: tuple[Value, ...] | None = None

    @property
    def ends(self) -> tuple[Value, Value]:
        """The first and the last value."""
        if self.values is not None:
            return self.values[0], self.values[-1]
        assert self.low is not None
        assert self.high is not None
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The section `tune` of params.yaml."""

    run: str  # the method or finetune whose mIoU counts
    space: Mapping[str, Range]  # by the paths of numbers in params.yaml, such as superpixels.slic.segments
    split: str | None = None  # a split that no evaluation reports; null: `held_out` of the training images
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    trials: Positive = 20
    points: Positive = 5  # grid: values of a range that has no list
    concurrent: Positive = 1  # trials at the same time
    seed: Whole = 0
    asha: bool = True  # whether trials that are behind others after the same number of steps are ended early
    reduction: Annotated[int, Field(ge=2)] = 3  # ASHA: of so many trials one goes on
    grace: Annotated[float, Field(gt=0, le=1)] = 0.2  # ASHA: the share of the steps that every trial gets


def read(params: Params) -> Search:
    """The search that params.yaml declares; UserError: a path that is not there, an empty range, a split that is reported."""
    section = Section(params.tune, params.path, "tune")
    if not section.raw:
        raise UserError(f"{params.path}: tune is empty: docs/search.md shows what it needs")
    space = section.part("space")
    if not space.raw:
        raise UserError(f"{params.path}: tune.space is empty: there is nothing to search")
    section.only(names(Search))
    del section.raw["space"]
    search = section.parse(Search, space={path: space.part(path).parse(Range) for path in space.raw})
    for path, entry in search.space.items():
        check_range(params, path, entry)
    reported = {evaluation.split: name for name, evaluation in params.evaluations.items()}
    if search.split in reported:
        why = f"is what evaluation {reported[search.split]} reports, and a search must not have seen it"
        raise UserError(f"{params.path}: tune.split: {search.split} {why}: name another, or none to hold out training images")
    configs.find({**params.methods, **params.finetunes}, search.run, "tune.run: params.yaml", params.path)
    return search


def check_range(params: Params, path: str, entry: Range) -> None:
    """A range must hold at least two values; whether each is allowed is told by reading params.yaml with it."""
    place = f"{params.path}: tune.space.{path}"
    if (entry.values is None) == (entry.low is None or entry.high is None):
        raise UserError(f"{place} needs low and high, or values")
    if entry.values is not None:
        if len(set(map(repr, entry.values))) < 2:
            raise UserError(f"{place}: values has fewer than two different ones: {list(entry.values)}")
        return
    assert entry.low is not None
    assert entry.high is not None
    if not entry.low < entry.high:
        raise UserError(f"{place} is empty: low {entry.low} is not below high {entry.high}")
    if entry.log and entry.low <= 0:
        raise UserError(f"{place}: with log, low must be above 0, not {entry.low}")
    if entry.whole and (entry.low % 1 or entry.high % 1):
        raise UserError(f"{place}: low and high of whole numbers must be whole, not {entry.low} and {entry.high}")


def patched(raw: Mapping[str, Any], values: Mapping[str, Value], file: Path) -> dict[str, Any]:
    """params.yaml's content with the values at their paths, and without the search."""
    made = json.loads(json.dumps({**raw, "tune": {}}))
    for path, value in values.items():
        *parents, last = path.split(".")
        place = made
        for depth, key in enumerate(parents):
            if not isinstance(place.get(key), dict):
                known = suggestion(key, [name for name, inside in place.items() if isinstance(inside, dict)])
                raise UserError(f"{file}: tune.space.{path}: {'.'.join(parents[: depth + 1])} does not exist{known}")
            place = place[key]
        place[last] = value
    return made


def fingerprint(raw: Mapping[str, Any]) -> str:
    """What names a search: everything in params.yaml but where it runs and how many trials there are, and the data."""
    tune = {key: value for key, value in raw["tune"].items() if key not in ("trials", "concurrent")}
    covered = {**raw, "launch": None, "tune": tune, "data.manifest": files.sha256(store.PREPARED)}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]
