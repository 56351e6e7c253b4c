"""The loop of a training: batch, step, record, checkpoint, from any step on.

The global batch of step t is a pure function of (seed, t) and random state is drawn afresh from (seed, t, rank) at each step,
so a checkpoint is model, optimizer and a step number: killed anywhere and run again, the same weights come out.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from models.backbones import backbone
from pipeline.data.prepared import Prepared
from pipeline.ground import stopping
from pipeline.ground.errors import UserError
from pipeline.ground.stopping import StoppedError
from pipeline.settings.schema import Config
from pipeline.training import optim
from pipeline.training.batches import Fault, train_batches
from pipeline.training.distributed import on_rank_0, rank, verdict, world
from pipeline.training.step import Training

Report = Callable[[Mapping[str, float]], None]


def silent(metrics: Mapping[str, float]) -> None:
    """The report of a launcher that needs none."""


class Observer(Protocol):
    """Who keeps the record of a training. `waited` counts the seconds that steps waited for their batches."""

    waited: float

    def due(self, step: int) -> bool:
        """Whether the row of `step` finished steps is recorded."""

    def row(self, step: int, rate: float, terms: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
        """Record what step number `step` (from 1) found; returns the row."""


def begin(config: Config, classes: tuple[str, ...], device: torch.device) -> Training:
    """Everything before the first step; what the models refuse is the same on all ranks."""
    try:
        return Training.start(config, classes, device)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{config.name}: {error}") from None


def fit(training: Training, manifest: Prepared, monitor: Observer, start: int, report: Report, keep: Callable[[int], None]) -> None:
    """The steps from `start` on; `keep` saves a checkpoint of so many finished steps, on rank 0.

    Raises:
        UserError: on all ranks alike, for a batch that cannot be made or a non-finite loss.
        StoppedError: on all ranks alike, after a checkpoint, once `stopping.asked` is set on any, and one step at least was done.
    """
    config = training.config
    pin = training.device.type == "cuda"
    mean, _ = backbone.normalization(config.backbone.name)
    batches = train_batches(config, manifest, start=start, rank=rank(), world=world(), mean=mean, pin=pin)
    for number in range(start, config.train.iterations):
        began = time.monotonic()
        batch = next(batches)
        monitor.waited += time.monotonic() - began
        fault, stop = verdict(batch.message if isinstance(batch, Fault) else None, stop=stopping.asked.is_set())
        # Before a fault: what asks us to stop may have ended a data worker too. But after a step, or one start may follow another for ever.
        if stop and (number > start or fault is not None):
            on_rank_0(functools.partial(keep, number))
            raise StoppedError(f"{config.name}, seed {config.seed}: stopped after step {number}, as asked; run it again and it goes on")
        if fault is not None or isinstance(batch, Fault):
            raise UserError(fault)
        terms = training.step(batch, number)
        if monitor.due(number + 1):
            report(monitor.row(number + 1, optim.learning_rate(config.train, number), terms, training.scaling()))
        if (number + 1) % config.launch.save_every == 0 and number + 1 < config.train.iterations:
            on_rank_0(functools.partial(keep, number + 1))
