"""The section `tune` of params.yaml: a search over any of its numbers, by their paths.

    tune:
      run: ecrf
      space:
        superpixels.slic.segments: {low: 50, high: 400, log: true, whole: true}
        methods.ecrf.crf.normalization: {values: [none, count]}

What a trial would be refused for is told when params.yaml is read: `check` reads it with the ends of every range and each value of a list.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.ground.errors import UserError
from pipeline.settings import config as configs
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Config, Evaluation, Params
from pipeline.settings.strict import Positive, Real, Section, Whole, adapter, names, read_yaml, suggestion

Scalar = int | float | str | bool | None
Value = Scalar | list[Scalar]
SCORE = "score"  # the evaluation of a trial
OF_TRIALS = ("crop", "scale", "ratio_base", "jitter")  # what of `data` a trial reads; the rest was prepared before


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of one number: from low to high, both among them, or one of a list."""

    low: Real | None = None
    high: Real | None = None
    log: bool = False  # whether equal ratios are equally likely, instead of equal differences
    whole: bool = False  # integers only
    values: list[Value] | None = None

    @property
    def ends(self) -> tuple[Value, Value]:
        """The first and the last value."""
        if self.values is not None:
            return self.values[0], self.values[-1]
        low, high = self.between
        return (int(low), int(high)) if self.whole else (low, high)

    @property
    def between(self) -> tuple[float, float]:
        """The ends of a range of numbers."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Search:
    """The section `tune` of params.yaml."""

    run: str  # the method or finetune whose mIoU counts
    space: Mapping[str, Range]  # by the paths of numbers in params.yaml, such as superpixels.slic.segments
    split: str | None = None  # a split that no evaluation reports; null: `held_out` of the training images
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    trials: Positive = 20
    points: Annotated[int, Field(ge=2)] = 5  # grid: values of a range that has no list
    concurrent: Positive = 1  # trials at the same time
    seed: Whole = 0
    asha: bool = True  # whether trials that are behind others after the same number of steps are ended early
    reduction: Annotated[int, Field(ge=2)] = 3  # ASHA: of so many trials one goes on
    grace: Annotated[float, Field(gt=0, le=1)] = 0.2  # ASHA: the share of the steps that every trial gets


def read(params: Params) -> Search:
    """The search that params.yaml declares; UserError: an unknown key or run, an empty range, a split that is reported."""
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
    check_split(params, search.split)
    if search.asha and any(path.endswith("train.iterations") for path in search.space):
        raise UserError(f"{params.path}: tune.asha compares trials after equal steps: with train.iterations in the space, set it to false")
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
    low, high = entry.between
    if not low < high:
        raise UserError(f"{place} is empty: low {low} is not below high {high}")
    if entry.log and low <= 0:
        raise UserError(f"{place}: with log, low must be above 0, not {low}")
    if entry.whole and (low % 1 or high % 1):
        raise UserError(f"{place}: low and high of whole numbers must be whole, not {low} and {high}")


def check_split(params: Params, split: str | None) -> None:
    """A search must not see what is reported, and a score on what a trial trains on says nothing."""
    where, way = f"{params.path}: tune.split: {split}", "name another, or none to hold out training images"
    reported = {evaluation.split: name for name, evaluation in params.evaluations.items()}
    if split == "train":
        raise UserError(f"{where} is what a trial trains on: {way}")
    if split in reported:
        raise UserError(f"{where} is what evaluation {reported[split]} reports, and a search must not have seen it: {way}")
    if split == "test":
        raise UserError(f"{where} is for reports, whether or not an evaluation names it yet: {way}")


def check(params: Params, splits: Sequence[str], classes: int) -> None:
    """Refuse what a trial would be refused for; `splits` and `classes` are the dataset's."""
    from pipeline.runs.check import check_run

    search = read(params)
    if search.split is not None and search.split not in splits:
        why = f"{params.data.dataset} has no split {search.split!r}{suggestion(search.split, splits)}"
        raise UserError(f"{params.path}: tune.split: {why}")
    raw = read_yaml(params.path).raw
    first = made(raw, search, first_values(search), params)
    for path, entry in search.space.items():
        if path.startswith("data.") and path.split(".")[1] not in OF_TRIALS:
            raise UserError(f"{params.path}: tune.space.{path}: the data is prepared before: a trial cannot change it")
        other = made(raw, search, first_values(search) | {path: entry.ends[1]}, params)
        if other == first:
            raise UserError(f"{params.path}: tune.space.{path} changes nothing in {search.run}, which is what a trial trains")
    for values in variants(search):
        config, _ = made(raw, search, values, params)
        try:
            check_run(config, classes, params, f"{'finetunes' if config.finetune else 'methods'}.{config.name}")
        except ValueError as error:
            raise with_values(values, error, params.path) from None


def first_values(search: Search) -> dict[str, Value]:
    """The first value of every range."""
    return {path: entry.ends[0] for path, entry in search.space.items()}


def variants(search: Search) -> list[dict[str, Value]]:
    """Values that stand for all: the first of every range, the last, and each value of a list beside the others' first."""
    first = first_values(search)
    found = [first, {path: entry.ends[1] for path, entry in search.space.items()}]
    found += [first | {path: value} for path, entry in search.space.items() for value in (entry.values or [])[1:]]
    return found


def made(raw: Mapping[str, Any], search: Search, values: Mapping[str, Value], params: Params) -> tuple[Config, Evaluation]:
    """What a trial of these values trains, and how it is scored; UserError: what reading params.yaml with them refuses."""
    try:
        return trial_of(raw, search, values, params.path, params.launch)
    except UserError as error:
        raise with_values(values, error, params.path) from None


def with_values(values: Mapping[str, Value], error: ValueError, file: Path) -> UserError:
    """The message of an error that these values led to."""
    said = str(error).removeprefix(f"{file}: ")
    if said.startswith("tune."):
        return UserError(f"{file}: {said}")
    return UserError(f"{file}: tune.space: with {shown(values)}: {said}")


def shown(values: Mapping[str, Value]) -> str:
    """Values for people."""
    return ", ".join(f"{path}={written(value)}" for path, value in values.items())


def written(value: Value) -> str:
    """A value as YAML and `dvc exp run -S` take it."""
    return value if isinstance(value, str) else json.dumps(value)


def trial_of(raw: Mapping[str, Any], search: Search, values: Mapping[str, Value], file: Path, launch: Launch) -> tuple[Config, Evaluation]:
    """The config of the searched run with these values, not stamped, and the evaluation that scores it."""
    params = configs.resolved(Section(patched(raw, search.run, values, file), file), launch)
    config = {**params.methods, **params.finetunes}[search.run]
    plain = replace(params.evaluations[SCORE], scales=(1.0,), flip=False, match=None, dense_crf=None)
    return config, replace(plain, split=search.split or "train")


def patched(raw: Mapping[str, Any], run: str, values: Mapping[str, Value], file: Path) -> dict[str, Any]:
    """params.yaml's content with the values at their paths, reduced to the one run and its evaluation."""
    made = json.loads(json.dumps({**raw, "tune": {}}))
    for path, value in values.items():
        *parents, last = path.split(".")
        place = made
        for depth, key in enumerate(parents):
            if depth > 1 and key not in place:  # an entry's own section, such as methods.car.train, may be left out
                place[key] = {}
            if not isinstance(place.get(key), dict):
                known = suggestion(key, [name for name, inside in place.items() if isinstance(inside, dict)])
                raise UserError(f"{file}: tune.space.{path}: {'.'.join(parents[: depth + 1])} does not exist{known}")
            place = place[key]
        place[last] = value
    for kind in ("methods", "finetunes"):
        made[kind] = {name: entry for name, entry in (made.get(kind) or {}).items() if name == run}
    own = [entry for entry in made["evaluations"].values() if entry.get("of") == run]
    made["evaluations"] = {SCORE: own[0] if own else {"of": run}}
    return made


def settings(params: Params, search: Search) -> dict[str, Any]:
    """What a search's results depend on, as plain values: neither the number of trials, nor what is searched, nor where it runs."""
    from pipeline.runs import fingerprint
    from pipeline.superpixels import slic

    raw = read_yaml(params.path).raw
    config, score = trial_of(raw, search, first_values(search), params.path, params.launch)
    covered = [trial_of(raw, search, values, params.path, params.launch)[0] for values in variants(search)]
    inputs = fingerprint.search_inputs(covered)
    values = fingerprint.settings(replace(config, inputs=inputs))
    evaluation = adapter(Evaluation).dump_python(score, mode="json")
    tune = adapter(Search).dump_python(search, mode="json")
    for key in ("name", "launch", "radii"):
        del evaluation[key]
    for key in ("trials", "concurrent"):
        del tune[key]
    return {**values, "evaluation": evaluation, "tune": tune, "superpixels.version": slic.VERSION}


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name a search."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
