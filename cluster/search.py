"""A search with Ray Tune: it chooses values, starts trials beside one another, and ends those that are behind.

Optuna's TPE, random values or a grid choose; ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020) ends. What
a trial does is pipeline/trial.py; here it is a process that reports (steps, mIoU).
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.profiles import Launch
from pipeline.search import Range, Search, Value
from pipeline.trial import RECORD, Trial, scores

NAME = "ray"  # the search's own folder holds Ray's state under this name
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_GLOBAL_CHECKPOINT_S": "2"}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its values, its score after so many steps (null: none), why it failed or null, and its seconds."""

    values: Mapping[str, Value]
    steps: int
    miou: float | None
    failure: str | None
    seconds: float


def search(wanted: Search, folder: Path, launch: Launch, iterations: int) -> list[Outcome]:
    """Run the search in `folder`, or go on with it; all trials that there have been."""
    os.environ.update(QUIET)
    import ray
    from ray import tune

    variables = {**QUIET, "PYTHONPATH": str(Path(__file__).parents[1])}  # where a trial's process finds this code
    ray.init(
        address="local", num_cpus=wanted.concurrent, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        runtime_env={"env_vars": variables},
    )  # fmt: skip
    try:
        trainable = tune.with_resources(
            tune.with_parameters(run, wanted=wanted, root=str(Path.cwd()), folder=str(folder.absolute()), launch=launch), {"cpu": 1}
        )
        state = folder.absolute() / NAME
        if tune.Tuner.can_restore(str(state)):
            tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, param_space=param_space(wanted))
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=param_space(wanted),
                tune_config=tune_config(wanted, iterations),
                run_config=tune.RunConfig(name=NAME, storage_path=str(folder.absolute()), verbose=1),
            )
        tuner.fit()
    finally:
        ray.shutdown()
    return outcomes(folder)


def run(values: dict[str, Value], *, wanted: Search, root: str, folder: str, launch: Launch) -> None:
    """One trial, in a process of Ray's."""
    from ray import tune

    for steps, miou in scores(Trial.of(Path(root), Path(folder), wanted, values, launch)):
        tune.report({"miou": miou, "steps": steps})


def param_space(wanted: Search) -> dict[str, Any]:
    """Ray's form of the ranges."""
    return {path: domain(entry, wanted) for path, entry in wanted.space.items()}


def domain(entry: Range, wanted: Search) -> Any:
    """Ray's form of one range."""
    from ray import tune

    if wanted.algorithm == "grid":
        return tune.grid_search(points(entry, wanted.points))
    if entry.values is not None:
        return tune.choice(list(entry.values))
    low, high = entry.low, entry.high
    assert low is not None
    assert high is not None
    if entry.whole:
        return tune.lograndint(int(low), int(high) + 1) if entry.log else tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if entry.log else tune.uniform(low, high)


def points(entry: Range, count: int) -> list[Value]:
    """The values of a range that a grid visits."""
    import numpy as np

    if entry.values is not None:
        return list(entry.values)
    assert entry.low is not None
    assert entry.high is not None
    made = np.geomspace(entry.low, entry.high, count) if entry.log else np.linspace(entry.low, entry.high, count)
    return list(dict.fromkeys(round(value) if entry.whole else float(value) for value in made.tolist()))


def tune_config(wanted: Search, iterations: int) -> Any:
    """Who chooses, who ends trials, and how many there are."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if wanted.algorithm == "tpe":
        from optuna.samplers import TPESampler
        from ray.tune.search.optuna import OptunaSearch

        chooser: Any = OptunaSearch(metric="miou", mode="max", sampler=TPESampler(seed=wanted.seed))
    else:
        chooser = BasicVariantGenerator(random_state=wanted.seed)
    scheduler = None
    if wanted.asha:
        grace = max(1, round(wanted.grace * iterations))
        scheduler = ASHAScheduler(time_attr="steps", max_t=iterations, grace_period=grace, reduction_factor=wanted.reduction)
    return tune.TuneConfig(
        metric="miou", mode="max", search_alg=chooser, scheduler=scheduler,
        num_samples=1 if wanted.algorithm == "grid" else wanted.trials, max_concurrent_trials=wanted.concurrent,
    )  # fmt: skip


def outcomes(folder: Path) -> list[Outcome]:
    """What the trials' own records say."""
    found = []
    for place in sorted(folder.glob(f"trials/*/{RECORD}")):
        record = files.read_json(place, "delete it, and its trial is done again")
        steps = max(map(int, record["scores"]), default=0)
        found.append(Outcome(record["values"], steps, record["scores"].get(str(steps)), record["failure"], record["seconds"]))
    return found
