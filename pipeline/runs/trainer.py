"""A run of one seed: the one function that every launcher calls.

The training itself is pipeline/training; here it is locked, found finished or gone on with, recorded, mirrored and published.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.data import prepared
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.runs import folders
from pipeline.runs.copies import Copies, copying
from pipeline.runs.fingerprint import fingerprint, settings, verify
from pipeline.runs.monitor import Monitor, curve, summary
from pipeline.settings.schema import Config
from pipeline.tracking.mirror import Mirror
from pipeline.training import checkpoint
from pipeline.training.distributed import agree, of_rank_0, on_rank_0, process_group, rank
from pipeline.training.loop import Report, begin, fit, silent
from pipeline.training.step import Training


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


@contextlib.contextmanager
def writing(config: Config) -> Iterator[None]:
    """The lock of this seed, held by rank 0 and known to all."""
    folder = folders.attempt_folder(config)
    with contextlib.ExitStack() as stack:
        on_rank_0(lambda: stack.enter_context(files.locked(folder / "lock", str(folder))))
        yield


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
