"""Which values a search tries next: Optuna's TPE (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011), random, or a grid.

The choice is drawn from (the search's seed, the trial's number) and what is known by then, so that a search that was killed, or is
given more trials, goes on as one that ran through; with one trial at a time TPE makes the same choices twice.
"""

import itertools
import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.search.space import Range, Search, Value
from pipeline.search.trials import Outcome

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

TRIES = 100  # draws of values that were tried before, after which all are taken to have been


def suggest(search: Search, known: Sequence[Outcome]) -> dict[str, Value] | None:
    """The values of trial number `len(known)`, none that was tried before; None where none is left."""
    tried = {json.dumps(dict(outcome.values), sort_keys=True) for outcome in known}
    if search.algorithm == "grid":
        left = (values for values in grid(search) if json.dumps(values, sort_keys=True) not in tried)
        return next(left, None)
    if len(known) >= search.trials:
        return None
    for attempt in range(TRIES):
        values = drawn(search, known, attempt)
        if json.dumps(values, sort_keys=True) not in tried:
            return values
    return None


def size(search: Search) -> int:
    """How many trials there are to be."""
    return sum(1 for _ in grid(search)) if search.algorithm == "grid" else search.trials


def grid(search: Search) -> Any:
    """All combinations, the last path's values changing first."""
    axes = [points(entry, search.points) for entry in search.space.values()]
    return (dict(zip(search.space, values, strict=True)) for values in itertools.product(*axes))


def points(entry: Range, count: int) -> list[Value]:
    """The values of a range that a grid visits."""
    if entry.values is not None:
        return list(entry.values)
    low, high = entry.between
    made = (np.geomspace if entry.log else np.linspace)(low, high, count).tolist()
    made[0], made[-1] = low, high  # to the last digit
    return list(dict.fromkeys(round(value) if entry.whole else float(value) for value in made))


def drawn(search: Search, known: Sequence[Outcome], attempt: int) -> dict[str, Value]:
    """Values for the next trial."""
    import optuna
    from optuna.samplers import RandomSampler, TPESampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence((search.seed, len(known), attempt)).generate_state(1)[0])
    space = {path: distribution(entry) for path, entry in search.space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls constant_liar experimental
        sampler = TPESampler(seed=seed, constant_liar=True) if search.algorithm == "tpe" else RandomSampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for outcome in known if search.algorithm == "tpe" else ():
        study.add_trial(as_optuna(outcome, search, space))
    chosen = study.ask(space).params
    return {path: entry.values[chosen[path]] if entry.values is not None else chosen[path] for path, entry in search.space.items()}


def distribution(entry: Range) -> "BaseDistribution":
    """Optuna's form of a range; a list's values by their places, for they may be lists themselves."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if entry.values is not None:
        return CategoricalDistribution(range(len(entry.values)))
    low, high = entry.between
    if entry.whole:
        return IntDistribution(int(low), int(high), log=entry.log)
    return FloatDistribution(low, high, log=entry.log)


def as_optuna(outcome: Outcome, search: Search, space: "dict[str, BaseDistribution]") -> "FrozenTrial":
    """A trial as Optuna knows it: TPE compares those that ended early by their last score, and learns nothing from failed ones."""
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "early": TrialState.PRUNED, "failed": TrialState.FAIL, "running": TrialState.RUNNING}
    params = {path: place_of(outcome.values[path], entry) for path, entry in search.space.items()}
    value = outcome.miou if outcome.state == "finished" else None
    scores = dict(outcome.scores) if outcome.state in ("finished", "early") else {}
    return create_trial(state=states[outcome.state], params=params, distributions=space, value=value, intermediate_values=scores)


def place_of(value: Value, entry: Range) -> Any:
    """A value as Optuna knows it; 1 and true are different values of a list."""
    return value if entry.values is None else list(map(repr, entry.values)).index(repr(value))
