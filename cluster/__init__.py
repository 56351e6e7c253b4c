"""Where it runs: a module for each backend of the launch profiles, with `launch(work, config)`, which blocks until the work is done."""

import importlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from pipeline.profiles import Launch

MODULES = {"local": "cluster.local", "ray": "cluster.ray_train"}


class Launchable(Protocol):
    """A config that says where it runs."""

    @property
    def launch(self) -> Launch:
        """The profile."""
        ...


C = TypeVar("C", bound=Launchable)


def launch(work: Callable[[C], None], config: C) -> None:
    """Run `work(config)` where its profile says, and wait for it. UserError: why it failed, in words for the user."""
    importlib.import_module(MODULES[config.launch.backend]).launch(work, config)
