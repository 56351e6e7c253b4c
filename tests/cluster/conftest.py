"""What tests that start Ray share: the variables that it reads, a bound of time, and a profile."""

import os
import signal
from collections.abc import Iterator

import pytest
from makers.project import Project
from makers.ray_marks import BOUND

VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # each would import Ray for nothing
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_health_check_initial_delay_ms": "0",  # a lost node is noticed in seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",  # until then the lost node's place is hoped for
}


@pytest.fixture(scope="module")
def ray_environment() -> Iterator[None]:
    """Ray reads variables, and sets some."""
    before = dict(os.environ)
    os.environ.update(VARIABLES)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def bounded() -> Iterator[None]:
    """No test waits for ever."""

    def give_up(signum: int, frame: object) -> None:
        raise TimeoutError(f"this test took more than {BOUND} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(BOUND)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def away(project: Project) -> Project:
    """A project whose profile is a cluster of its own."""
    project.profile |= {"backend": "ray", "processes": 2, "threads": 1, "ray": {}}
    project.write()
    return project
