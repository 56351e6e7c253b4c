"""Ray Train: the weights of local processes, workers and drivers that are killed, and what is refused at once."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project

from pipeline import runs
from pipeline.distributed import rank, world
from pipeline.errors import UserError
from pipeline.schema import Config
from pipeline.trainer import train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")]
Report = Callable[[Mapping[str, float]], None]
BOUND = 400  # seconds for one test, whatever hangs
VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with a CPU each, so that two workers never share one."""
    before = dict(os.environ)
    os.environ.update(VARIABLES)
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this file
    started = None
    try:
        sizes = {"num_cpus": 1, "object_store_memory": 80 << 20}
        started = Cluster(initialize_head=True, head_node_args=sizes | {"include_dashboard": False})
        second = started.add_node(**sizes)
        yield SimpleNamespace(cluster=started, address=started.address, second=second)
    finally:
        if started is not None:
            started.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No test waits for ever."""

    def give_up(signum: int, frame: object) -> None:
        raise TimeoutError(f"this test took more than {BOUND} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(BOUND)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def expected(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What two local processes publish."""
    folder = tmp_path_factory.mktemp("local") / "project"
    shutil.copytree(prepared_project, folder)
    project = Project(folder)
    project.profile |= {"processes": 2}
    assert project.stage("train", "fcn") == 0
    return (folder / "runs/fcn/weights/seed-0.pt").read_bytes()


@pytest.fixture
def on_ray(project: Project, nodes: Any) -> Project:
    """A project whose profile is the two-node cluster."""
    project.profile |= {"backend": "ray", "processes": 2, "threads": 1, "ray": {"address": nodes.address}}
    project.write()
    return project


def launch(work: Callable[..., None], config: Config) -> None:
    from cluster import launch as dispatch

    dispatch(work, config)


def weights(config: Config) -> bytes:
    return (runs.finished_folder(config) / "seed-0.pt").read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def hosts(config: Config, report: Report) -> None:
    """Each rank says where it is."""
    import ray

    Path(f"node-{rank()}").write_text(ray.get_runtime_context().get_node_id())
    train(config, report)


def die_once(config: Config, report: Report) -> None:
    """Train; rank 1 is killed after the sixth step, the first time."""

    def deadly(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 6 and rank() == 1 and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        report(metrics)

    train(config, deadly)


def pause(config: Config, report: Report) -> None:
    """Train; all stop after the sixth step until they may go on."""

    def waiting(metrics: Mapping[str, float]) -> None:
        Path(f"world-{world()}").touch()
        while metrics["step"] == 6 and not Path("go").exists():
            Path(f"reached-{rank()}").write_text(str(os.getpid()))
            time.sleep(0.1)
        report(metrics)

    train(config, waiting)


def refuse(config: Config, report: Report) -> None:
    """Rank 1 has a reason; the other would wait for it."""
    Path(f"tried-{rank()}-{time.time_ns()}").touch()
    if rank() == 1:
        raise UserError("rank 1 has its reasons")
    time.sleep(BOUND)


def drive(folder: Path, config: Config, variables: dict[str, str]) -> None:
    """A driver's process."""
    os.environ.update(variables)
    os.chdir(folder)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    launch(pause, config)


def test_two_nodes_give_the_weights_of_two_local_processes(on_ray: Project, expected: bytes) -> None:
    config = on_ray.config("fcn")
    launch(hosts, config)
    assert weights(config) == expected
    assert Path("node-0").read_text() != Path("node-1").read_text()
    assert not list(Path("runs", "ray").glob("*.????????"))

    assert on_ray.stage("train", "fcn") == 0  # collects it
    results = []
    for profile in ({}, {"backend": "local", "processes": 1, "ray": None}):
        on_ray.profile |= profile
        assert on_ray.stage("evaluate", "fcn") == 0
        results.append(json.loads(Path("results/fcn.json").read_text()))
        del results[-1]["cost"]
    assert results[0] == results[1]


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(on_ray: Project, expected: bytes) -> None:
    config = on_ray.config("fcn")
    launch(die_once, config)
    assert Path("died").exists()
    assert "training from step 4" in Path("runs/fcn/seed-0/log.txt").read_text()
    assert weights(config) == expected


def test_a_killed_driver_leaves_nobody_and_the_next_goes_on(on_ray: Project, expected: bytes) -> None:
    config = on_ray.config("fcn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "pipeline.trainer", "pipeline.evaluation"])
    driver = context.Process(target=drive, args=(on_ray.folder, config, dict(os.environ)))
    driver.start()
    try:
        wait_until(lambda: all(Path(f"reached-{number}").exists() for number in (0, 1)) or not driver.is_alive())
        assert driver.is_alive()
        orphans = [int(Path(f"reached-{number}").read_text()) for number in (0, 1)]
    finally:
        driver.kill()
        driver.join()
    Path("go").touch()
    launch(pause, config)
    assert not any(Path(f"/proc/{pid}").exists() for pid in orphans)
    assert "training from step 4" in Path("runs/fcn/seed-0/log.txt").read_text()
    assert weights(config) == expected


def test_what_a_user_must_mend_is_told_and_not_tried_again(on_ray: Project) -> None:
    with pytest.raises(UserError, match="^rank 1 has its reasons$"):
        launch(refuse, on_ray.config("fcn"))
    tries = [path.name.split("-")[1] for path in Path().glob("tried-*")]
    assert len(tries) == len(set(tries)) > 0


def with_ray(config: Config, **options: Any) -> Config:
    assert config.launch.ray is not None
    return replace(config, launch=replace(config.launch, ray=replace(config.launch.ray, **options)))


def test_what_the_cluster_cannot_hold_is_refused(on_ray: Project) -> None:
    config = on_ray.config("fcn")
    with pytest.raises(UserError, match=r"2 process\(es\) of 2 CPU\(s\) and 0 GPU\(s\) each, .* room for 0 \(.*: 1 CPUs, 0 GPUs; .*\)$"):
        launch(train, with_ray(config, cpus=2))
    with pytest.raises(UserError, match=r"1 GPU.* room for 0"):
        launch(train, with_ray(config, gpus=1))
