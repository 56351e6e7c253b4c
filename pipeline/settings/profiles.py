"""Launch profiles: where and how a run executes. Nothing in them can change a weight, except that counts of processes and threads round.

A profile is a file in cluster/profiles, or any YAML file; `launch` in params.yaml names it, `LAUNCH` in the environment goes before.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.ground.codebase import ROOT
from pipeline.ground.errors import UserError
from pipeline.settings.strict import Pair, Positive, Section, Whole, names, read_yaml, suggestion

PROFILES = ROOT / "cluster" / "profiles"
TIME = r"^(\d+-)?\d{1,2}(:\d{2}){1,2}$|^\d+$"  # [days-]hours:minutes:seconds, hours:minutes after days, or minutes
MEMORY = r"^[1-9]\d*[KMGT]?$"


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """What a job asks Slurm for. What is null is left to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # features that a node must have, such as "a100"
    time: Annotated[str, Field(pattern=TIME)] = "1-00:00:00"  # days-hours:minutes:seconds; a longer training goes on in a new job
    memory: Annotated[str, Field(pattern=MEMORY)] | None = None  # of each node, such as 64G
    cpus: Positive = 4  # of each process
    gpus: Whole = 1  # of each process
    warning: Positive = 120  # seconds before its end at which a job saves a checkpoint and queues again
    setup: tuple[str, ...] = ()  # lines of shell before the job, such as "module load cuda"
    container: str | None = None  # an image for the pyxis plugin: srun --container-image
    options: Mapping[str, str | int | bool] = field(default_factory=dict)  # any other of sbatch's, such as {exclude: node3}


@dataclass(frozen=True, kw_only=True)
class Ray:
    """What a training asks Ray for."""

    address: str | None = None  # of a running cluster: auto, or host:port; null starts one on this machine
    storage: str | None = None  # a folder that all nodes see, or an fsspec address such as s3://bucket/runs; null: runs/ray here
    cpus: Positive = 1  # of each process
    gpus: Whole = 0  # of each process
    failures: Whole = 3  # how often lost workers are replaced before the training fails
    elastic: Pair | None = None  # the fewest and most processes, in place of a fixed number


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A profile. The sections `slurm` and `ray` belong to the backends of their names and are null elsewhere."""

    name: str
    backend: Literal["local", "slurm", "ray"]
    nodes: Positive = 1
    processes: Positive = 1  # of each node, one for each device
    threads: Positive | None = None  # of each process; null: the cores divided by the processes
    workers: Whole = 1  # data workers of each process
    decoded: bool = False  # whether training images are kept decoded in the store, and read from there
    save_every: Positive = 200  # steps between checkpoints
    keep: Positive = 2  # checkpoints kept
    checkpoints: Annotated[str, Field(min_length=1)] | None = None  # a folder or fsspec address with copies of them, for a lost disk
    log_every: Positive = 10  # steps between records
    bars: bool = True
    tracking: bool = True
    slurm: Slurm | None = None
    ray: Ray | None = None

    @property
    def world(self) -> int:
        """All processes; the most of them where their number may change."""
        return self.ray.elastic[1] if self.ray and self.ray.elastic else self.nodes * self.processes

    @property
    def copies(self) -> str | None:
        """Where copies of checkpoints go; the storage that Ray was given holds them too."""
        return self.checkpoints or (f"{self.ray.storage.rstrip('/')}/checkpoints" if self.ray and self.ray.storage else None)


SECTIONS = {"slurm": Slurm, "ray": Ray}


def profile_name(top: Section) -> str:
    """The profile that params.yaml, or before it the environment, chooses."""
    chosen = os.environ.get("LAUNCH") or top.raw.get("launch", "local")
    if not isinstance(chosen, str):
        raise UserError(f"{top.file}: launch must be a profile's name or a path, not {chosen!r}")
    return chosen


def load_profile(chosen: str) -> Launch:
    """A profile by its name in cluster/profiles, or by the path of a YAML file."""
    file = Path(chosen) if chosen.endswith((".yaml", ".yml")) else PROFILES / f"{chosen}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
        raise UserError(f"launch profile {chosen!r} does not exist{suggestion(chosen, known)}, or the path of a .yaml file")
    section = read_yaml(file).only([key for key in names(Launch) if key != "name"])
    launch = section.parse(Launch, **own_section(section), name=file.stem)
    if launch.backend == "local" and launch.nodes > 1:
        raise UserError(f"{file}: nodes: backend local is one machine, not {launch.nodes}")
    if launch.ray and launch.ray.elastic and launch.ray.elastic[0] > launch.ray.elastic[1]:
        raise UserError(f"{file}: ray.elastic must be [fewest, most], not {list(launch.ray.elastic)}")
    return launch


def own_section(section: Section) -> dict[str, Any]:
    """The section of the profile's backend, which may be left out; another backend's is a mistake."""
    backend, found = section.raw.get("backend"), {}
    for name, kind in SECTIONS.items():
        given = section.raw.pop(name, None)
        if given is not None and name != backend:
            raise UserError(f"{section.file}: {name} is a section of backend {name}, and this profile's is {backend}")
        if name == backend:
            found[name] = Section(given or {}, section.file, name).parse(kind)
    return found
