"""Where it runs: a module for each backend of the launch profiles, with `launch(work, config)`, which blocks until the work is done."""

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pipeline.runs.copies import refuse_unwritable
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Config

MODULES = {"local": "cluster.local", "slurm": "cluster.slurm", "ray": "cluster.ray_train"}
QUEUES = ("slurm",)  # backends with `submit(work, configs)`


class Launchable(Protocol):
    """A config that says where it runs."""

    @property
    def launch(self) -> Launch:
        """The profile."""
        ...


C = TypeVar("C", bound=Launchable)


def launch(work: Callable[[C], None], config: C) -> None:
    """Run `work(config)` where its profile says, and wait for it. UserError: why it failed, in words for the user."""
    refuse_unwritable_copies(config)
    importlib.import_module(MODULES[config.launch.backend]).launch(work, config)


def submit(work: Callable[[C], None], configs: Sequence[C]) -> Sequence[tuple[str, bool, str]]:
    """Where there is a queue, let all of them be in it, so that they run side by side; `launch` then waits for each.

    Returns each one's job, whether it was submitted just now, and what is wrong where a job of other settings is in its place; nothing
    where there is no queue.
    """
    if not configs or configs[0].launch.backend not in QUEUES:
        return []
    refuse_unwritable_copies(configs[0])
    return importlib.import_module(MODULES[configs[0].launch.backend]).submit(work, configs)


def refuse_unwritable_copies(config: Launchable) -> None:
    """A training's copies of checkpoints must have a place, which is known before anything waits in a queue."""
    if isinstance(config, Config) and config.launch.copies is not None:
        refuse_unwritable(config.launch.copies, "checkpoints" if config.launch.checkpoints else "ray.storage")
