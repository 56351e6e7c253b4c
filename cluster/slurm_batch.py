"""Handing tasks to sbatch, through submitit: one job, or an array of jobs on the same copy of the code."""

import contextlib
import io
import os
import pickle
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import slurm_watch
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Launch, Slurm

FOLDER = Path("runs/.slurm")
FOR_EVER = 10**6  # submitit's bound on requeues


@dataclass(frozen=True, kw_only=True)
class Task:
    """Work that may become a job. What has no `key` is never attached to."""

    work: Callable[[Any], None]
    config: Any
    title: str
    code: Path
    key: str | None = None
    record: Path | None = None
    resumes: bool = True
    pinned: Mapping[str, str] = field(default_factory=dict)
    results: tuple[tuple[Path, Path], ...] = ()  # what it publishes, and where the job keeps a copy
    command: str = ""  # what attaches to it


def submitted(tasks: Sequence[Task]) -> list[str]:
    """One job for one task, and an array for several; recorded before and after, so that no kill loses a job."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from cluster.slurm_job import Job

    launch = tasks[0].config.launch
    profile = launch.slurm or Slurm()
    warning = check_warning(launch.name, profile)
    comment = f"workflow-{uuid.uuid4().hex}"
    records = [{"job": None, "key": task.key, "comment": comment, "index": n if len(tasks) > 1 else None} for n, task in enumerate(tasks)]
    for task, record in zip(tasks, records, strict=True):
        if task.record is not None:
            files.write_json(task.record, record)
    executor = SlurmExecutor(FOLDER, max_num_timeout=FOR_EVER, python=python(profile))
    name = tasks[0].title if len(tasks) == 1 else f"{len(tasks)} runs"
    executor.update_parameters(**parameters(launch, profile, tasks[0].code, comment, name))
    try:
        with clean(), executor.batch():
            jobs = [executor.submit(Job(**job_of(task, warning))) for task in tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"{launch.name}: {refusal(str(error))}") from None
    for task, record, job in zip(tasks, records, jobs, strict=True):
        if task.record is not None:
            files.write_json(task.record, record | {"job": job.job_id})
    return [job.job_id for job in jobs]


def job_of(task: Task, limit: float) -> dict[str, Any]:
    """What a job is made of."""
    return {
        "payload": pickle.dumps((task.work, task.config)),
        "words": str(words_of()),
        "resumes": task.resumes,
        "limit": limit,
        "pinned": task.pinned,
        "kept": tuple((str(source), str(kept)) for source, kept in task.results),
    }


def parameters(launch: Launch, profile: Slurm, code: Path, comment: str, name: str) -> dict[str, Any]:
    """The profile in submitit's words."""
    here = os.getcwd()
    options = {key.replace("_", "-"): value for key, value in profile.options.items() if value is not False}
    srun = ["--kill-on-bad-exit=1", "--open-mode=append", f"--cpus-per-task={profile.cpus}"]  # srun has not asked sbatch since 22.05
    if profile.container:
        srun += [f"--container-image={profile.container}", f"--container-mounts={here}:{here}", f"--container-workdir={here}"]
    asked = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "gpus_per_node": profile.gpus * launch.processes or None,
    }
    forced = {"requeue": True, "chdir": here, "time": profile.time, "comment": comment, "mem": profile.memory, **options}
    quoted = shlex.quote(str(code))
    return {
        **{key: value for key, value in asked.items() if value is not None},
        "job_name": name,
        "nodes": launch.nodes,
        "ntasks_per_node": launch.processes,
        "cpus_per_task": profile.cpus,
        "time": -(-slurm_watch.seconds(profile.time) // 60),
        "signal_delay_s": profile.warning,
        "stderr_to_stdout": True,
        "wckey": None,
        "srun_args": srun,
        "setup": [*profile.setup, f"export PYTHONPATH={quoted}${{PYTHONPATH:+:$PYTHONPATH}}", "export PYTHONSAFEPATH=1"],
        "additional_parameters": {key: value for key, value in forced.items() if value is not None},
    }


def python(profile: Slurm) -> str:
    """What starts a rank: a warning that comes before the rank listens would end it and fail the job, so it is held until then."""
    held = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})"
    start = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return f"{'python3' if profile.container else shlex.quote(sys.executable)} -ISc {shlex.quote(f'{held}; {start}')}"


def check_warning(name: str, profile: Slurm) -> float:
    """The seconds that a job may run before it is warned; UserError where there are none."""
    left = slurm_watch.seconds(profile.time) - profile.warning
    if left <= 0:
        raise UserError(f"launch profile {name}: slurm.warning {profile.warning} s is not shorter than slurm.time {profile.time}")
    return left


def refusal(said: str) -> str:
    """What sbatch said, as one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in said.splitlines() if "error" in line] or said.split("\n")
    return "sbatch refuses it: " + "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))


@contextlib.contextmanager
def clean() -> Iterator[None]:
    """An environment without what a job around us has set; what says where the cluster is stays. submitit's echo is held back."""
    from submitit.helpers import clean_env

    conf = {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CONF_SERVER") if name in os.environ}
    with clean_env(), contextlib.redirect_stderr(io.StringIO()):
        os.environ.update(conf)
        yield


def log_of(job: str) -> Path:
    """What rank 0 of a job says."""
    return FOLDER / f"{job}_0_log.out"


def words_of() -> Path:
    """The start of the files with the ranks' last words."""
    return FOLDER / "words"
