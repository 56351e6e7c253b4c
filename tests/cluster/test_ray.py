"""Ray Train: the weights of local processes, workers and drivers that are killed, and clusters that are joined or started."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from makers.project import Project
from makers.ray_marks import BOUND, MARKS

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.lifeline import alive, parent_of
from pipeline.runs import folders
from pipeline.runs.trainer import train
from pipeline.settings import config as configs
from pipeline.settings.profiles import Ray
from pipeline.settings.schema import Config
from pipeline.training.distributed import of_rank_0, rank, world

pytestmark = [*MARKS, pytest.mark.usefixtures("ray_environment", "bounded")]
Report = Callable[[Mapping[str, float]], None]
SIZES = {"num_cpus": 1, "object_store_memory": 80 << 20}  # of a node


@pytest.fixture(scope="module")
def nodes(ray_environment: None) -> Iterator[Any]:
    """A Ray cluster of two nodes with a CPU each, so that two workers never share one."""
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this file
    started = None
    try:
        started = Cluster(initialize_head=True, head_node_args=SIZES | {"include_dashboard": False})
        second = started.add_node(**SIZES)
        yield SimpleNamespace(cluster=started, address=started.address, second=second)
    finally:
        if started is not None:
            started.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def on_ray(project: Project, nodes: Any) -> Project:
    """A project whose profile is the two-node cluster."""
    project.profile |= {"backend": "ray", "processes": 2, "threads": 1, "ray": {"address": nodes.address}}
    project.write()
    return project


def launch(work: Callable[..., None], config: Any) -> None:
    from cluster import launch as dispatch

    dispatch(work, config)


def started(name: str, argument: Any, **variables: str | None) -> multiprocessing.process.BaseProcess:
    """A process that calls a function of this file, with some variables set or removed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "pipeline.runs.trainer", "pipeline.evaluation.evaluate"])
    environment = {key: value for key, value in {**os.environ, **variables}.items() if value is not None}
    process = context.Process(target=call, args=(Path.cwd(), name, argument, environment))
    process.start()
    return process


def call(folder: Path, name: str, argument: Any, environment: dict[str, str]) -> None:
    """That process's life."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    globals()[name](argument)


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def reached() -> list[int]:
    """The processes of the two ranks, once both wait."""
    wait_until(all_reached)
    return [int(Path(f"reached-{number}").read_text()) for number in (0, 1)]


def all_reached() -> bool:
    return all(Path(f"reached-{number}").exists() for number in (0, 1))


def are_alive(pids: list[int]) -> list[bool]:
    return [alive(pid) for pid in pids]


def results(folder: Path) -> dict[str, Any]:
    """What an evaluation found, without what it cost."""
    found = json.loads((folder / "results/fcn.json").read_text())
    del found["cost"]
    return found


def log() -> str:
    return Path("runs/fcn/seed-0/log.txt").read_text()


def pause(config: Config, report: Report) -> None:
    """Train; all stop after the sixth step until they may go on."""

    def waiting(metrics: Mapping[str, float]) -> None:
        Path(f"world-{world()}").touch()
        while metrics["step"] == 6 and not Path("go").exists():
            files.write_bytes(Path(f"reached-{rank()}"), str(os.getpid()).encode(), flushed=False)
            time.sleep(0.1)
        report(metrics)

    train(config, waiting)


def losses(folder: Path) -> list[float]:
    """The loss at each recorded step."""
    with (folder / "seed-0.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_fewer_workers_go_on_with_the_same_images_where_a_node_is_lost(on_ray: Project, nodes: Any) -> None:
    """Without dropout, which each rank draws for itself, the losses are those of one local process, up to rounding."""
    on_ray.params["methods"]["fcn"]["crf"]["dropout"] = 0
    on_ray.profile["ray"] |= {"elastic": [1, 2]}
    config = on_ray.config("fcn")
    launch(train, replace(config, launch=replace(config.launch, backend="local", processes=1, ray=None)))
    alone = losses(folders.finished_folder(config))
    shutil.rmtree("runs")

    def lose() -> None:
        pids = reached()
        nodes.cluster.remove_node(nodes.second, allow_graceful=False)
        wait_until(lambda: not all(are_alive(pids)))  # its worker outlives it for a moment, in which both could go on
        Path("go").touch()

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    launch(pause, config)
    thread.join()
    assert Path("world-2").exists()
    assert Path("world-1").exists()
    assert "training from step 4" in log()
    assert losses(folders.finished_folder(config)) == pytest.approx(alone, rel=1e-5)
    assert not list(Path("runs", "ray").glob("*.????????"))


def suffer(config: Config, report: Report) -> None:
    """Train: at step 6 rank 1 is killed, once; at step 10 all wait until they may go on. Then evaluate, and rank 1 has a reason to fail."""
    import ray

    from pipeline.evaluation.evaluate import evaluate

    Path(f"node-{rank()}").write_text(ray.get_runtime_context().get_node_id())

    def deadly(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 6 and rank() == 1 and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while metrics["step"] == 10 and not Path("go").exists():
            files.write_bytes(Path(f"reached-{rank()}"), str(os.getpid()).encode(), flushed=False)
            time.sleep(0.1)
        report(metrics)

    train(config, deadly)
    if rank() == 0:
        folders.collect(config, [config])
    of_rank_0(None)
    evaluate(configs.load(Path("params.yaml")).evaluations["fcn"], report)
    Path(f"tried-{rank()}-{time.time_ns()}").touch()
    if rank() == 1:
        raise UserError("rank 1 has its reasons")
    time.sleep(BOUND)


def drive(config: Config) -> None:
    launch(suffer, config)


def test_killed_workers_and_drivers_change_no_digit_of_two_local_processes(on_ray: Project, nodes: Any, two_processes: Project) -> None:
    """A worker is killed, then the driver; the next driver goes on. What a user must mend is told at once, and not tried again."""
    if len(nodes.cluster.list_all_nodes()) == 1:  # the test before this one has lost the other
        nodes.cluster.add_node(**SIZES)
    config = on_ray.config("fcn")
    first = started("drive", config)
    try:
        wait_until(lambda: all_reached() or not first.is_alive())
        assert first.is_alive()
        orphans = reached()
    finally:
        first.kill()
        first.join()
    assert Path("died").exists()
    assert "training from step 4" in log()
    Path("go").touch()
    with pytest.raises(UserError, match=r"^rank 1 has its reasons$"):
        drive(config)
    assert not any(are_alive(orphans))
    assert "training from step 8" in log()
    assert Path("node-0").read_text() != Path("node-1").read_text()
    assert len(list(Path().glob("tried-*"))) == 2
    for name in ("seed-0.pt", "seed-0.csv"):
        assert Path("runs/fcn/weights", name).read_bytes() == (two_processes.folder / "runs/fcn/weights" / name).read_bytes()
    assert two_processes.stage("evaluate", "fcn") == 0
    assert results(on_ray.folder) == results(two_processes.folder)


def with_ray(config: Config, **options: Any) -> Config:
    assert config.launch.ray is not None
    return replace(config, launch=replace(config.launch, ray=replace(config.launch.ray, **options)))


def test_what_the_cluster_cannot_hold_is_refused(on_ray: Project) -> None:
    config = on_ray.config("fcn")
    with pytest.raises(UserError, match=r"2 process\(es\) of 2 CPU\(s\) and 0 GPU\(s\) each, .* room for 0 \(.*: 1 CPUs, 0 GPUs; .*\)$"):
        launch(train, with_ray(config, cpus=2))
    with pytest.raises(UserError, match=r"1 GPU.* room for 0"):
        launch(train, with_ray(config, gpus=1))


def test_a_cluster_of_our_own_has_a_token_in_no_file_and_is_stopped_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, for Ray remembers how it was started."""
    monkeypatch.chdir(tmp_path)
    home = Path.home() / ".ray" / "auth_token"
    before = home.exists()
    process = started("look_around", Ray(), RAY_AUTH_MODE=None)
    process.join(BOUND)
    assert process.exitcode == 0
    *seen, node = Path("seen").read_text().split()
    assert seen == ["token", "64", "False"]
    assert home.exists() == before
    wait_until(lambda: not Path(f"/proc/{node}").exists())


def look_around(options: Ray) -> None:
    """What a worker's process of a cluster that was started here knows, and the process of its node."""
    from cluster.ray_cluster import cluster
    from cluster.snapshot import snapshot

    with cluster(options, snapshot()):
        import ray

        mode, token = ray.get(ray.remote(lambda: (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"])).remote())
        (node,) = (pid for pid in raylets() if parent_of(pid) == os.getpid())
    Path("seen").write_text(f"{mode} {len(token)} {ray.is_initialized()} {node}")


def raylets() -> list[int]:
    """The processes of this machine that are a Ray node, whoever's."""
    found = subprocess.run(["ps", "-eo", "pid=,comm="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if line.split()[1] == "raylet"]
