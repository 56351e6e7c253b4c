"""What Ray Train's controller does after a failure and when nodes come or go; its process imports this file and no model.

Ray has no public way to say which failures are tried again, nor which numbers of workers will do: these are methods of its inside,
which any release may change. Where one that is replaced here is gone, importing this file is an ImportError that names it.
"""

import inspect
import sys
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster.local import is_loss
from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Ray


class Trainer(TorchTrainer):
    """Ray's, which tries again after losses alone, runs on numbers of workers that divide the batch, and leaves Ctrl-C to Python."""

    policies: dict[str, Any]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        return super()._initialize_and_run_controller(**{**arguments, **self.policies})

    def _create_default_callbacks(self) -> list[Any]:
        """Without the watcher that removes a dead run's reservation, as Ray itself does: it needs the dashboard, else it never ends."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray's would stay after the run, and end this process without a word."""


class Losses(DefaultFailurePolicy):
    """Try again where workers or the connection to them were lost, and never what would fail again."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Ray asks this after each failure."""
        if isinstance(training_failed_error, WorkerGroupError) and faults(training_failed_error):
            return FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        if decision is FailureDecision.RETRY:
            say(f"{lost(training_failed_error)}: starting again from the last checkpoint")
        return decision


class Divisors(ElasticScalingPolicy):
    """Of the numbers of workers that there is room for, the largest that divides the global batch."""

    sizes: list[int]

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((size for size in self.sizes if size <= room), default=0)


def faults(error: WorkerGroupError) -> dict[int, Exception]:
    """The ranks that failed by themselves, with their errors: neither lost nor through the loss of another."""
    return {rank: each for rank, each in error.worker_failures.items() if not (isinstance(each, RayError | RayTrainError) or is_loss(each))}


def told(error: TrainingFailedError, options: Ray) -> str:
    """One line for a user; a traceback of the code goes to stderr before it."""
    if isinstance(error, ControllerError):
        return f"Ray could not run the training: {' '.join(str(error.controller_failure).split())[:300]}"
    if not isinstance(error, WorkerGroupError):
        return f"Ray ended the training: {' '.join(str(error).split())[:300]}"
    own = faults(error)
    for each in own.values():
        if isinstance(each, UserError):
            return str(each)
    if own:
        say(str(error))
        return f"rank {min(own)} ended with {type(own[min(own)]).__name__}; its traceback is above"
    tries = f"{options.failures} replacement(s) were lost too" if options.failures else "ray.failures allows no replacement"
    return f"{lost(error)} and {tries}; run it again and it goes on from the last checkpoint"


def lost(error: TrainingFailedError) -> str:
    """Which workers are gone."""
    if not isinstance(error, WorkerGroupError):
        return f"the workers did not start or were taken away ({' '.join(str(error).split())[:200]})"
    dead = [rank for rank, each in error.worker_failures.items() if isinstance(each, RayError | RayTrainError)]
    return f"rank {', '.join(map(str, sorted(dead or error.worker_failures)))} was lost (out of memory? a node that went away?)"


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr, flush=True)


def refuse_other_ray(own: type) -> None:
    """ImportError where a method of `own` replaces nothing: Ray would never call it, and nobody would notice."""
    (parent,) = own.__bases__
    for name, value in vars(own).items():
        if inspect.isfunction(value) and not hasattr(parent, name):
            raise ImportError(f"{parent.__name__} has no {name}")


for each in (Trainer, Losses, Divisors):
    refuse_other_ray(each)
