"""A search with Ray Tune, which runs trials beside one another and ends those that are behind.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020) ends trials; what is tried next is search/suggestions.py,
what a trial does search/trial.py. Ray's own books are not used to go on: the trials are known by search/trials.py, so that a search
that was killed at any time loses nothing, and one that is done takes more trials.
"""

import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from cluster.ray_cluster import cluster, writable_storage
from cluster.room import Room, refuse_impossible
from cluster.snapshot import snapshot
from pipeline.ground.errors import UserError, words
from pipeline.ground.lifeline import die_with_parent
from pipeline.search import suggestions
from pipeline.search.space import Search
from pipeline.search.trial import Trial, rungs, scores
from pipeline.search.trials import Outcome, State, Trials, place, read_record

BOOKS = "ray"  # the folder of Ray's own books, in the search's
# No files for other tools beside the trials, no tables, no handler that would take Ctrl-C for the end of the search, books seldom, and
# trials may end without a score.
QUIET = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
}
LOST = "its process was lost: killed, as when memory runs out, or its node went away"
Told = Callable[[Outcome], None]


def search(wanted: Search, folder: Path, given: Room, iterations: int, trials: Trials, told: Told) -> None:
    """Run the search in `folder`, or go on with it, until all its trials have ended; `told` hears of each score and each end."""
    if not trials.unfinished and suggestions.suggest(wanted, trials.all) is None:
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told by us
    first = Trial.of(Path.cwd(), folder, wanted, {}, given.launch)
    storage = writable_storage(given.options) if given.options.storage else {"storage_path": str((folder / BOOKS).absolute())}
    heights = len(rungs(wanted, iterations, given.launch.log_every))
    with cluster(given.options, snapshot(), shown=False):  # each trial has a log of its own
        refuse_impossible(given, wanted, ray.nodes())
        tune.Tuner(
            tune.with_resources(tune.with_parameters(run, first=first), {"cpu": given.cpus, "gpu": given.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=Chooser(wanted, trials), scheduler=asha(wanted, heights, trials), num_samples=1 << 30,
                max_concurrent_trials=wanted.concurrent, trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(name=folder.name, **storage, verbose=0, callbacks=[Follower(trials, told)]),
        ).fit()  # fmt: skip
    shutil.rmtree(folder / BOOKS, ignore_errors=True)


def asha(wanted: Search, heights: int, trials: Trials) -> ASHAScheduler | None:
    """Who ends trials early: one who knows every score so far. Rung number i is told as reduction**i, which is how ASHA counts."""
    if not wanted.asha or heights < 2:
        return None
    top = wanted.reduction ** (heights - 1)
    scheduler = ASHAScheduler(time_attr="height", metric="miou", mode="max", max_t=top, grace_period=1, reduction_factor=wanted.reduction)
    for outcome in trials.all:
        known: Any = SimpleNamespace(trial_id=f"known-{outcome.number}")
        scheduler.on_trial_add(None, known)  # type: ignore[arg-type]
        for index, (_, miou) in enumerate(outcome.scores):
            scheduler.on_trial_result(None, known, {"height": wanted.reduction**index, "miou": miou})  # type: ignore[arg-type]
        scheduler.on_trial_remove(None, known)  # type: ignore[arg-type]
    return scheduler


def run(config: dict[str, Any], *, first: Trial) -> None:
    """One trial, in a process of Ray's. What fails stands in the trial's own record."""
    from cluster.local import launch

    die_with_parent()  # Ray's, which dies with the command: nobody trains on
    trial = first.at(config["values"])
    if not trial.folder.parents[1].is_dir():
        raise UserError(
            f"node {socket.gethostname()} does not share the project's folder {trial.root}: Ray's nodes need it on a common disk"
        )
    try:
        for index, steps, miou in scores(trial, launch):
            tune.report({"miou": miou, "steps": steps, "height": trial.search.reduction**index})
    except Exception:
        if not read_record(trial.folder.parents[1], trial.values).get("failure"):
            raise


class Chooser(Searcher):
    """Ray's form of what is tried next: the trials that a kill left unfinished, then new ones."""

    def __init__(self, wanted: Search, trials: Trials) -> None:
        super().__init__(metric="miou", mode="max")
        self.wanted, self.trials, self.waiting = wanted, trials, trials.unfinished

    def suggest(self, trial_id: str) -> Any:
        """Ray asks this whenever there is room for a trial."""
        if self.waiting:
            chosen = self.waiting.pop(0)
        elif (values := suggestions.suggest(self.wanted, self.trials.all)) is None:
            return Searcher.FINISHED
        else:
            chosen = self.trials.begin(values)
        return {"number": chosen.number, "values": dict(chosen.values)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The trials' own records say it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing that is not on the disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing that is not on the disk."""


class Follower(TrialProgressCallback):
    """Notes how trials end, in place of the callback with which Ray would print it."""

    def __init__(self, trials: Trials, told: Told) -> None:
        super().__init__()
        self.trials, self.told = trials, told

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial was scored; of its last score its end tells."""
        outcome = self.trials.scored(trial.config["number"])
        if "miou" in result and outcome.steps < read_record(self.trials.folder, outcome.values)["iterations"]:
            self.told(outcome)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end, was ended by ASHA, or failed and said why."""
        outcome = self.trials.scored(trial.config["number"])
        record = read_record(self.trials.folder, outcome.values)
        if record.get("failure"):
            self.close(outcome, "failed", record["failure"])
        else:
            self.close(outcome, "finished" if outcome.steps >= record["iterations"] else "early")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process was lost, or could not start."""
        self.close(self.trials.scored(trial.config["number"]), "failed", how(trial.get_pickled_error()))

    def close(self, outcome: Outcome, state: State, reason: str | None = None) -> None:
        """Note an end, and delete what the trial would have gone on from."""
        ended = self.trials.end(outcome.number, state, reason)
        for folder in place(self.trials.folder, outcome.values).glob("runs/*/checkpoints"):
            shutil.rmtree(folder, ignore_errors=True)
        self.told(ended)


def how(error: Exception | None) -> str:
    """Why a trial's process ended before the trial did."""
    if isinstance(error, RayTaskError):
        error = error.cause
    if error is None or isinstance(error, RayError):
        return LOST
    return words(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
