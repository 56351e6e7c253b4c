"""What a trial of a search gets: the processes, CPUs and GPUs that the launch profile gives a training, on one node.

local    Ray is started here; the cores are shared out among the trials that run at once, and with GPUs a process has one
ray      a trial has `processes` processes of ray.cpus and ray.gpus each, on any node that has them free
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.search.space import Search
from pipeline.settings.profiles import Launch, Ray
from pipeline.training.distributed import cores


@dataclass(frozen=True)
class Room:
    """A trial's profile, how Ray is reached, and what a trial reserves there."""

    launch: Launch
    options: Ray
    cpus: float
    gpus: int


def room(launch: Launch, wanted: Search) -> Room:
    """What the profile gives each trial; UserError: a profile that a search cannot use, or more trials at once than GPUs."""
    where = f"launch profile {launch.name}"
    if launch.backend == "slurm":
        way = "take profile ray; inside a Slurm allocation, cluster/ray-on-slurm.sh uv run python -m stages.tune"
        raise UserError(f"{where}: a search runs here or on a Ray cluster, not in Slurm's queue: {way}")
    if launch.nodes > 1 or (launch.ray and launch.ray.elastic):
        way = "set nodes: 1, elastic: null and processes to the GPUs of one trial (docs/search.md)"
        raise UserError(f"{where}: a trial of a search runs on one node with a fixed number of processes: {way}")
    if launch.ray is not None:
        threads = launch.threads or launch.ray.cpus
        share, gpus = float(launch.processes * launch.ray.cpus), launch.processes * launch.ray.gpus
        return Room(replace(launch, threads=threads), launch.ray, share, gpus)
    gpus = launch.processes if (found := devices()) else 0
    if gpus * wanted.concurrent > found:
        asked = f"{wanted.concurrent} trials at once of {launch.processes} process(es) each"
        raise UserError(f"{where}: {asked} need {gpus * wanted.concurrent} GPUs, and this machine has {found}: lower tune.concurrent")
    threads = launch.threads or max(1, cores() // (wanted.concurrent * launch.processes))
    return Room(replace(launch, threads=threads), Ray(), parts(cores(), wanted.concurrent), gpus)


def devices() -> int:
    """The GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def parts(whole: int, count: int) -> float:
    """A share of the cores in a form that Ray takes: whole ones, or hundredths of one."""
    return float(whole // count) if whole >= count else max(math.floor(100 * whole / count) / 100, 0.01)


def refuse_impossible(given: Room, wanted: Search, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a trial that no node of Ray's could hold (Ray would wait for ever), and say how many fit at once.

    `nodes`: as `ray.nodes()` lists them.
    """
    asked = {"CPU": given.cpus, "GPU": float(given.gpus)}
    alive = [(node["NodeManagerHostname"], node["Resources"]) for node in nodes if node["Alive"]]
    fitting = sum(int(min(resources.get(name, 0) // amount for name, amount in asked.items() if amount)) for _, resources in alive)
    if not fitting:
        there = "; ".join(f"{name}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs" for name, resources in alive)
        each = f"a trial asks for {given.cpus:g} CPU(s) and {given.gpus} GPU(s) on one node"
        raise UserError(f"launch profile {given.launch.name}: {each}, and no node of the Ray cluster has them ({there})")
    if fitting < wanted.concurrent:
        warn(f"the Ray cluster has room for {fitting} trial(s) at once, fewer than tune.concurrent {wanted.concurrent}")
