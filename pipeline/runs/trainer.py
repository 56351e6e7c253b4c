"""Training: the one function that every launcher calls.

The global batch of step t is a pure function of (seed, t) and random state is drawn afresh from (seed, t, rank) at each step,
so a checkpoint is model, optimizer and a step number: killed anywhere and run again, the same weights come out.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from models.backbones import backbone
from pipeline.data import prepared
from pipeline.ground import files, stopping
from pipeline.ground.errors import UserError
from pipeline.ground.stopping import StoppedError
from pipeline.runs import folders
from pipeline.runs.copies import Copies, copying
from pipeline.runs.fingerprint import fingerprint, settings, verify
from pipeline.runs.monitor import Monitor, curve, summary
from pipeline.settings.schema import Config
from pipeline.tracking.mirror import Mirror
from pipeline.training import batches as data
from pipeline.training import checkpoint, optim
from pipeline.training.batches import Fault
from pipeline.training.distributed import agree, of_rank_0, process_group, rank, verdict, world
from pipeline.training.step import Training

Report = Callable[[Mapping[str, float]], None]


def silent(metrics: Mapping[str, float]) -> None:
    """The report of a launcher that needs none."""


def train(config: Config, report: Report = silent) -> None:
    """Train one seed of a stamped config and publish it under runs/<name>/finished/<fingerprint>.

    It goes on from the newest checkpoint of the same fingerprint. `report` gets each recorded row, on every rank equally often.

    Raises:
        UserError: on all ranks alike, for a second writer, a bad sample or a non-finite loss; the last checkpoint stays.
        StoppedError: on all ranks alike, after a checkpoint, once `stopping.asked` is set on any, and one step at least was done.
    """
    with process_group(config.launch) as device, writing(config), copying(config, active=rank() == 0) as copies:
        if of_rank_0(folders.is_finished(config)):
            return
        verify(config)
        manifest = prepared.read()
        training = begin(config, manifest.classes, device)
        step, seconds, history = resume(config, training, copies)
        monitor = Monitor(config, history, step, seconds, active=rank() == 0)
        with monitor.running(), mirror(config, manifest.dataset):
            fit(training, manifest, monitor, step, report, functools.partial(save, config, training, monitor, copies))
        on_rank_0(lambda: publish(config, training, manifest.classes, monitor))


def begin(config: Config, classes: tuple[str, ...], device: torch.device) -> Training:
    """Everything before the first step; what the models refuse is the same on all ranks."""
    try:
        return Training.start(config, classes, device)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{config.name}: {error}") from None


@contextlib.contextmanager
def writing(config: Config) -> Iterator[None]:
    """The lock of this seed, held by rank 0 and known to all."""
    folder = folders.attempt_folder(config)
    with contextlib.ExitStack() as stack:
        on_rank_0(lambda: stack.enter_context(files.locked(folder / "lock", str(folder))))
        yield


def on_rank_0(action: Callable[[], object]) -> None:
    """Let rank 0 do what only one may do; all ranks wait for it and share its UserError."""
    fault = None
    if rank() == 0:
        try:
            action()
        except UserError as error:
            fault = str(error)
    if fault := agree(fault):
        raise UserError(fault)


def mirror(config: Config, dataset: str) -> Mirror:
    """MLflow's copy of the record, on rank 0 where the profile wants it."""
    return Mirror(
        experiment=dataset,
        name=config.name,
        seed=config.seed,
        fingerprint=fingerprint(config),
        settings=settings(config),
        record=folders.attempt_folder(config) / "metrics.jsonl",
        enabled=config.launch.tracking and rank() == 0,
    )


def fit(training: Training, manifest: prepared.Prepared, monitor: Monitor, start: int, report: Report, keep: Callable[[int], None]) -> None:
    """The steps from `start` on; `keep` saves a checkpoint of so many finished steps, on rank 0."""
    config = training.config
    pin = training.device.type == "cuda"
    mean, _ = backbone.normalization(config.backbone.name)
    batches = data.train_batches(config, manifest, start=start, rank=rank(), world=world(), mean=mean, pin=pin)
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


def save(config: Config, training: Training, monitor: Monitor, copies: Copies | None, step: int) -> None:
    """Write a checkpoint of `step` finished steps."""
    folder = folders.checkpoint_folder(config)
    state = training.state() | {"seconds": monitor.seconds, "history": monitor.history}
    folders.write_settings(folder.parent, config)
    checkpoint.save(folder, step, state, config.launch.keep)
    if copies is not None:
        copies.send(step, checkpoint.path_of(folder, step))


def resume(config: Config, training: Training, copies: Copies | None) -> tuple[int, float, list[dict[str, float]]]:
    """Load the newest checkpoint that rank 0 finds; returns its step, seconds and record, or those of a start."""
    folder = folders.checkpoint_folder(config)
    found: tuple[int, dict[str, Any]] | None = None

    def choose() -> None:
        nonlocal found
        found = checkpoint.latest(folder)
        if copies is not None and copies.fetch(folder, found and found[0]):
            found = checkpoint.latest(folder)

    on_rank_0(choose)
    step, fault = of_rank_0(found[0] if found else None), None
    if step is None:
        return 0, 0.0, []
    if found is None:
        try:
            found = step, checkpoint.read(folder, step)
        except UserError as error:
            fault = f"rank {rank()}: {error}"
    if fault := agree(fault):
        raise UserError(fault)
    assert found is not None
    _, state = found
    training.load(state)
    return step, state["seconds"], state["history"]


def publish(config: Config, training: Training, classes: tuple[str, ...], monitor: Monitor) -> None:
    """Write the finished seed: settings and record first, the weights last, since they say that all is there."""
    folder, stem = folders.finished_folder(config), f"seed-{config.seed}"
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    folders.write_settings(folder, config)
    files.write_bytes(folder / f"{stem}.csv", curve(monitor.history))
    files.write_json(folder / f"{stem}.json", summary(config, monitor, parameters, training.device))
    state = training.averaged or training.model.state_dict()
    with files.replacing(folder / f"{stem}.pt") as file:
        torch.save(checkpoint.weights_payload(config, classes, fingerprint(config), state), file)
