"""Ray: the processes are workers of Ray Train, which starts them, joins them to a group and replaces those that are lost.

A lost worker (its process or node died) ends the others' step too; all are started again and go on from the last checkpoint, as
often as the profile's `ray.failures` says. What a user must mend, and faults of the code, are never tried twice.

Ray Train's own checkpoints are not used: ours lie in the project's folder, which all nodes share, and pipeline/runs/copies.py keeps copies
of them on the profile's storage.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
from ray import cloudpickle
from ray.train.torch import TorchConfig, get_device
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster import C, Launchable
from cluster.local import is_loss
from cluster.ray_cluster import cluster, refuse_impossible, writable_storage
from cluster.snapshot import refuse_other_code, snapshot
from pipeline.ground import files
from pipeline.ground.errors import BusyError, UserError, words
from pipeline.runs import folders
from pipeline.runs.fingerprint import fingerprint
from pipeline.settings.profiles import Ray
from pipeline.settings.schema import Config

try:
    from cluster.ray_policies import Divisors, Losses, Trainer, told
except ImportError as error:
    remedy = "install the release that pyproject.toml names"
    raise UserError(f"Ray {ray.__version__} is not the one that cluster/ray_policies.py was written for ({error}): {remedy}") from None

ORPHANS = 30.0  # seconds in which the workers of a driver that was killed have ended


def launch(work: Callable[..., None], config: C) -> None:
    """Run `work(config, report)` on the profile's Ray workers and wait for it.

    Raises UserError with a worker's own words, or with how it was lost.
    """
    options = config.launch.ray
    assert options is not None, "a profile of backend ray has its section"
    storage, sizes, name, code = writable_storage(options), world_sizes(config, options), run_name(config), snapshot()
    if isinstance(config, Config):
        refuse_other_code(config, code)
    resources = {"CPU": float(options.cpus)} | ({"GPU": float(options.gpus)} if options.gpus else {})
    scaling = ScalingConfig(
        num_workers=(sizes[0], sizes[-1]) if options.elastic else sizes[0], use_gpu=options.gpus > 0, resources_per_worker=resources
    )
    failure = FailureConfig(max_failures=options.failures)
    with cluster(options, code), shown(name) as mark:
        refuse_impossible(config.launch, options, sizes[0])
        wait_for_orphans(config)
        trainer = Trainer(
            worker,
            train_loop_config={"sent": cloudpickle.dumps((work, with_threads(config, options), Path.cwd(), mark))},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if options.gpus else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(
                name=name,
                **storage,
                failure_config=failure,
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        trainer.policies = {"failure_policy": Losses(failure)}
        if options.elastic:
            divisors = Divisors(scaling)
            divisors.sizes = sizes
            trainer.policies |= {"scaling_policy": divisors}
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise UserError(told(error, options)) from None


def world_sizes(config: Launchable, options: Ray) -> list[int]:
    """The numbers of processes that may run, ascending: a training's divide its global batch."""
    if options.elastic is None:
        return [config.launch.world]
    sizes = range(options.elastic[0], options.elastic[1] + 1)
    if isinstance(config, Config):
        return [size for size in sizes if config.train.batch_size % (size * config.train.accumulate) == 0]
    return list(sizes)


def run_name(config: Any) -> str:
    """Ray silently goes on with an earlier run of the same name, so a training's says all that it depends on; others are new."""
    if isinstance(config, Config) and config.inputs is not None:
        return f"{config.name}-seed-{config.seed}-{fingerprint(config)}"
    return f"{config.name}-{uuid.uuid4().hex[:16]}"


def with_threads(config: C, options: Ray) -> C:
    """The config with a thread for each CPU that a process was promised, where the profile does not say how many."""
    launch = config.launch
    return replace(config, launch=replace(launch, threads=launch.threads or options.cpus))  # type: ignore[type-var]


@contextlib.contextmanager
def shown(name: str) -> Iterator[Path]:
    """A file in the project's folder by which workers know that they see the same folder, not another of the same path."""
    mark = Path("runs", "ray", f"{name}.{uuid.uuid4().hex[:8]}")
    files.write_bytes(mark, b"", flushed=False)
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def wait_for_orphans(config: Launchable) -> None:
    """Where the driver was killed and started again: its workers end within seconds, and until then hold the seed's lock."""
    if not isinstance(config, Config):
        return
    folder, limit = folders.attempt_folder(config), time.monotonic() + ORPHANS
    while True:
        try:
            with files.locked(folder / "lock", str(folder)):
                return
        except BusyError:
            if time.monotonic() > limit:
                raise
        time.sleep(0.5)


def worker(sent: dict[str, bytes]) -> None:
    """A worker's life, in the project's folder with the snapshot's code. What a user can mend is raised as UserError."""
    work, config, folder, mark = cloudpickle.loads(sent["sent"])
    if not (folder / mark).is_file():
        raise UserError(f"node {socket.gethostname()} does not share the project's folder {folder}: Ray's nodes need it on a common disk")
    os.chdir(folder)
    device = get_device()
    if device.type == "cuda":  # Ray shows a process all GPUs of its node's workers
        os.environ["LOCAL_RANK"] = str(device.index)
    try:
        work(config, report)
    except Exception as error:
        if not is_loss(error) and (line := words(error)) is not None:
            raise UserError(line) from None
        raise


def report(metrics: Mapping[str, float]) -> None:
    """A row for Ray; every rank reports equally often, for they wait for one another."""
    ray.train.report(dict(metrics))
