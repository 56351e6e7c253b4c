"""A Ray cluster to run on: joined by its address or started here, with this project's code as it is now on every node.

Nodes share the project's folder (a network disk), as Slurm's do: data, checkpoints and results are read and written there. The
code does not come from that folder: a copy of it (cluster/snapshot.py) travels with the job, so that an edit while a training runs,
or waits for a lost worker, changes nothing.
"""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.runs.copies import located, refuse_unwritable
from pipeline.settings.profiles import Launch, Ray
from pipeline.training.distributed import cores

# Variables, by how their names begin, that workers get too.
TRAVELS = ("DATA_STORE", "MLFLOW_", "HF_", "TORCH_HOME", "NCCL_", "GLOO_", "AWS_", "GOOGLE_", "FSSPEC_")
# How Ray behaves, where the user's environment says nothing: no telemetry, workers' lines as they were printed, failures seen soon
# (a report waits for the controller's next look), no metrics agent, and processes without a GPU see none.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # after which an elastic start that waits for a lost node asks for fewer
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
# A cluster of our own: nobody announces that its machine is taken away, and workers wait for the processor no longer than other programs.
OWN = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_worker_niceness": "0"}
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
PROBE = 5.0  # seconds in which an address must answer
OBJECTS = 128 << 20  # bytes of shared memory for Ray's own objects, where the cluster is ours: tensors never go there


@contextlib.contextmanager
def cluster(options: Ray, code: Path, *, shown: bool = True) -> Iterator[None]:
    """Be the driver of a job that runs `code` on the profile's cluster; a cluster that was started here ends with it.

    `shown`: whether what workers print appears here.
    """
    for name, value in (QUIET | ({} if options.address else OWN)).items():
        os.environ.setdefault(name, value)
    if options.address is None:
        protect()
        where: dict[str, Any] = {"address": "local", "num_cpus": cores(), "include_dashboard": False, "object_store_memory": OBJECTS}
    else:
        where = {"address": options.address}
        probe(os.environ.get("RAY_ADDRESS", "auto") if options.address == "auto" else options.address)

    import ray

    variables = {name: value for name, value in os.environ.items() if name.startswith(TRAVELS)}
    try:
        environment = {"working_dir": str(code), "env_vars": variables}
        ray.init(**where, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=shown)
    except Exception as error:  # Ray has no class of its own for what keeps it from starting
        ray.shutdown()
        raise UserError(unreachable(options.address, error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def protect() -> None:
    """A token for a cluster of our own, whose ports others on the network reach; without ours Ray would keep one in the home folder."""
    if not any(os.environ.get(name) for name in TOKEN):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def probe(address: str) -> None:
    """Refuse an address at which nobody listens; Ray itself would try for a minute."""
    if address == "auto":
        return
    if "://" in address:
        raise UserError(f"ray.address {address}: run the command on a node of the cluster, with address auto or host:port")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"ray.address must be auto or host:port, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{unreachable(address, error)}: `ray status --address {address}` on one of its nodes must answer") from None


def unreachable(address: str | None, error: Exception) -> str:
    """The line for a cluster that cannot be joined or started."""
    reason = " ".join(str(error).split())[:300]
    if "Failed to connect" in reason:  # somebody listens there
        reason = f"{reason}; one with a token wants RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN here"
    if address is None:
        return f"Ray could not be started on this machine: {reason}"
    if address == "auto":
        return f"no Ray cluster runs on this machine (`ray start --head`, or profile ray-local, which starts its own): {reason}"
    return f"no Ray cluster answers at {address}: {reason}"


def refuse_impossible(launch: Launch, options: Ray, fewest: int) -> None:
    """Refuse what the cluster's nodes could never hold (Ray would wait for ever), and say so where others hold it now."""
    import ray

    asked = {"CPU": float(options.cpus), "GPU": float(options.gpus)}
    nodes = [(node["NodeManagerHostname"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    room = sum(fitting(resources, asked) for _, resources in nodes)
    each = f"{fewest} process(es) of {options.cpus} CPU(s) and {options.gpus} GPU(s) each"
    if room < fewest:
        there = "; ".join(f"{name}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs" for name, resources in nodes)
        raise UserError(f"launch profile {launch.name} asks for {each}, and the Ray cluster has room for {room} ({there})")
    if fitting(ray.available_resources(), asked) < fewest:
        warn(f"others use the Ray cluster: {each} start when these are free")


def fitting(resources: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many processes of what is asked fit into the resources."""
    return int(min(resources.get(name, 0) // amount for name, amount in asked.items() if amount))


def writable_storage(options: Ray) -> dict[str, Any]:
    """Where Ray keeps its own books on the run, in its words; refused where it cannot be written."""
    if options.storage is None:
        return {"storage_path": str(Path("runs", "ray").absolute())}
    refuse_unwritable(options.storage, "ray.storage")
    system, path = located(options.storage)
    if "file" in system.protocol:
        return {"storage_path": path}

    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}
