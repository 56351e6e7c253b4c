"""Ray Train: the weights of local processes, workers and drivers that are killed, and what is refused at once."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project
from ranks import free_port

from pipeline import runs
from pipeline.distributed import rank, world
from pipeline.errors import UserError
from pipeline.profiles import Ray
from pipeline.schema import Config
from pipeline.trainer import train

WANTED = os.environ.get("REQUIRE_RAY") == "1"
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not WANTED, reason="it starts many small Ray clusters, for minutes: REQUIRE_RAY=1 runs it"),
    pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning"),
]
Report = Callable[[Mapping[str, float]], None]
BOUND = 400  # seconds for one test, whatever hangs
VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # each would import Ray for nothing
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Ray reads variables, and sets some."""
    before = dict(os.environ)
    os.environ.update(VARIABLES)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def nodes(environment: None) -> Iterator[Any]:
    """A Ray cluster of two nodes with a CPU each, so that two workers never share one."""
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
    with pytest.raises(UserError, match=r"^rank 1 has its reasons$"):
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


def test_fewer_workers_go_on_where_a_node_is_lost(on_ray: Project, nodes: Any) -> None:
    on_ray.profile["ray"] |= {"elastic": [1, 2]}
    config = on_ray.config("fcn")

    def lose() -> None:
        wait_until(lambda: all(Path(f"reached-{number}").exists() for number in (0, 1)))
        nodes.cluster.remove_node(nodes.second, allow_graceful=False)
        Path("go").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    launch(pause, config)
    thread.join()
    assert Path("world-2").exists()
    assert Path("world-1").exists()
    assert "training from step 4" in Path("runs/fcn/seed-0/log.txt").read_text()
    assert runs.is_finished(config)


@pytest.fixture
def away(project: Project) -> Project:
    """A project whose profile is a cluster of its own."""
    project.profile |= {"backend": "ray", "processes": 2, "threads": 1, "ray": {}}
    project.write()
    return project


def test_a_cluster_of_our_own_is_stopped_again(away: Project) -> None:
    import ray

    with pytest.raises(UserError, match=r"2 process\(es\) of 512 CPU\(s\) .* has room for 0"):
        launch(train, with_ray(away.config("fcn"), cpus=512))
    assert not ray.is_initialized()
    assert not Path.home().joinpath(".ray", "auth_token").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", r"no Ray cluster answers at 127.0.0.1:\d+: .*refused"),
        ("nowhere.invalid:6379", "no Ray cluster answers at nowhere.invalid:6379"),
        ("ray://127.0.0.1:10001", "run the command on a node of the cluster"),
        ("here", "ray.address must be auto or host:port"),
    ],
)
def test_an_address_where_nobody_answers_is_one_line(away: Project, capsys: pytest.CaptureFixture[str], address: str, words: str) -> None:
    away.profile["ray"] = {"address": address.format(port=free_port())}
    assert away.stage("train", "fcn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


@pytest.mark.parametrize("storage", ["params.yaml/here", "s4://bucket/runs", "file:///proc/here"])
def test_a_storage_that_cannot_be_written_is_one_line(away: Project, capsys: pytest.CaptureFixture[str], storage: str) -> None:
    away.profile["ray"] = {"storage": storage, "address": "127.0.0.1:9"}
    assert away.stage("train", "fcn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write ray.storage ")
    assert storage in line


def failed(failures: dict[int, Exception]) -> Any:
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("the traceback", failures)


def test_losses_alone_are_tried_again() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.config import FailureConfig

    from cluster.ray_policies import Losses, told

    torn, bug = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), KeyError("x")
    lost = failed({1: ActorDiedError(), 0: torn})
    policy = Losses(FailureConfig(max_failures=1))
    assert policy.make_decision(failed({1: ActorDiedError(), 0: bug})) is FailureDecision.RAISE
    assert [policy.make_decision(lost) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    assert told(lost, Ray(failures=1)).startswith(
        "rank 1 was lost (out of memory? a node that went away?) and 1 replacement(s) were lost too;"
    )
    assert told(failed({0: torn, 1: bug}), Ray()) == "rank 1 ended with KeyError; its traceback is above"
    assert told(failed({0: bug, 1: UserError("mend it")}), Ray()) == "mend it"


def test_numbers_of_workers_divide_the_batch(away: Project) -> None:
    from ray.train.v2.api.config import ScalingConfig

    from cluster.ray_policies import Divisors
    from cluster.ray_train import world_sizes

    away.profile["ray"] = {"elastic": [1, 4]}
    config = away.config("fcn")
    assert config.launch.ray is not None
    sizes = world_sizes(config, config.launch.ray)
    assert sizes == [1, 2, 4]
    policy = Divisors(ScalingConfig(num_workers=(1, 4)))
    policy.sizes = sizes
    assert [policy._count_possible_workers({"node": {"CPU": room}}) for room in (0, 1, 2, 3, 4, 9)] == [0, 1, 2, 2, 4, 4]
