"""Slurm, through submitit: one task for each device, on a copy of the code; whoever asks again attaches to the job that is there.

    runs/.slurm/                    what submitit and the jobs write: scripts, logs (<job>_<rank>_log.out), the ranks' last words
    runs/<name>/seed-<s>/slurm.json the job of a seed and the fingerprint that it was submitted for
    runs/.slurm/evaluations/        the same for evaluations, and their results until a stage collects them

A stage may die at any time: its job runs on, and the next stage of the same fingerprint waits for that job.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster import C, slurm_queue, slurm_watch
from cluster.slurm_batch import FOLDER, Task, log_of, submitted, words_of
from cluster.snapshot import refuse_other_code, snapshot
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.runs import fingerprint as fingerprints
from pipeline.runs import folders
from pipeline.settings.schema import Config, Evaluation
from pipeline.settings.strict import adapter


class Sent(NamedTuple):
    """A task's job, whether it was submitted just now, and what is wrong where the job is one of other settings."""

    job: str
    new: bool
    refusal: str = ""


def launch(work: Callable[[C], None], config: C) -> None:
    """Run `work(config)` as a job and wait for it. UserError: what a rank said, or Slurm's state and reason with the log's end."""
    task = describe(work, config)
    if task.results and all(kept.exists() for _, kept in task.results):
        collect(task)
        return
    [sent] = send([task])
    if sent.refusal:
        raise UserError(sent.refusal)
    others = functools.partial(siblings, config, sent.job)
    slurm_watch.Watch(task.title, sent.job, log_of(sent.job), words_of(), task.command, new=sent.new, others=others).follow()
    if isinstance(config, Config) and not slurm_watch.appears(lambda: folders.is_finished(config)):
        raise UserError(f"{task.title}: Slurm job {sent.job} ended without weights: run it again; its log is {log_of(sent.job)}")
    collect(task)


def submit(work: Callable[[C], None], configs: Sequence[C]) -> list[Sent]:
    """Let all of them be in the queue: those that no job is there for become one job array; a job of other settings hinders no other."""
    tasks = [describe(work, config) for config in configs]
    sent = send(tasks)
    for task, (job, new, refusal) in zip(tasks, sent, strict=True):
        said = f"{task.title}: Slurm job {job} {'submitted' if new else 'is in the queue already'}"
        print(refusal or said, file=sys.stderr, flush=True)
    return sent


def siblings(config: Any, job: str) -> list[str]:
    """The other seeds' jobs of a training that are in the queue."""
    if not isinstance(config, Config):
        return []
    records = [files.read_json(path, "delete it") for path in sorted(config.folder.glob("seed-*/slurm.json"))]
    jobs = [record["job"] for record in records if record["job"] not in (None, job)]
    return [other for other in jobs if not slurm_queue.status(other).ended]


def describe(work: Callable[[Any], None], config: Any) -> Task:
    """What `work(config)` depends on, and where its job is recorded."""
    code = snapshot()
    if isinstance(config, Config):
        refuse_other_code(config, code)
        stage = "train" if config.finetune is None else "finetune"
        return Task(
            work=work,
            config=config,
            code=code,
            title=f"{config.name}, seed {config.seed}",
            key=fingerprints.fingerprint(config),
            record=folders.attempt_folder(config) / "slurm.json",
            command=f"uv run python -m stages.{stage} {config.name}",
        )
    if isinstance(config, Evaluation):
        return describe_evaluation(work, config, code)
    return Task(work=work, config=config, code=code, title=getattr(work, "__name__", "work"))


def describe_evaluation(work: Callable[[Any], None], config: Evaluation, code: Path) -> Task:
    """An evaluation depends on its settings, the code, the dataset and the weights of every seed."""
    weights = sorted((Path("runs") / config.of / "weights").glob("seed-*.pt"))
    if not weights:
        raise UserError(f"run {config.of} has no weights: uv run dvc repro train@{config.of}")
    pinned = {path.as_posix(): files.sha256(path) for path in [store.PREPARED, *weights] if path.is_file()}
    settings = adapter(Evaluation).dump_python(config, mode="json")
    del settings["launch"]
    key = hashlib.sha256(json.dumps([settings, pinned, code.name], sort_keys=True).encode()).hexdigest()[:16]
    kept = FOLDER / "evaluations" / key
    folder = Path("results") / config.name
    sources = (folder / "pictures", folder / "grid.png", folder / "images.npz", folder.with_suffix(".json"))  # the last says: all is there
    return Task(
        work=work,
        config=config,
        code=code,
        title=f"evaluation {config.name}",
        key=key,
        record=FOLDER / "evaluations" / f"{config.name}.json",
        resumes=False,
        pinned=pinned,
        results=tuple((source, kept / source.name) for source in sources),
        command=f"uv run python -m stages.evaluate {config.name}",
    )


def collect(task: Task) -> None:
    """Put what an evaluation's job kept where it belongs."""
    from cluster.slurm_job import copy_tree

    for source, kept in task.results:
        if not slurm_watch.appears(kept.exists):
            raise UserError(f"{task.title}: its job ended without {source}: run it again")
        copy_tree(kept, source)


def send(tasks: Sequence[Task]) -> list[Sent]:
    """The jobs of the tasks: those in the queue, and new ones for the others. Of two that ask at once, one waits."""
    slurm_queue.require()
    with files.locked(FOLDER / "lock", "the queue of this project", wait=True):
        found = [attached(task) for task in tasks]
        fresh = [task for task, there in zip(tasks, found, strict=True) if there is None]
        jobs = iter(submitted(fresh) if fresh else [])
        return [there or Sent(next(jobs), new=True) for there in found]


def attached(task: Task) -> Sent | None:
    """The job that is in the queue for a task."""
    if task.record is None or not task.record.is_file():
        return None
    record = files.read_json(task.record, "delete it")
    job = record["job"]
    if job is None:  # whoever submitted it was killed before it knew the number
        array = slurm_queue.find(record["comment"])
        if array is None:
            return None
        job = array if record["index"] is None else f"{array}_{record['index']}"
        files.write_json(task.record, record | {"job": job})
    status = slurm_queue.status(job)
    if status.state == "UNKNOWN":
        raise UserError(f"Slurm does not answer ({status.reason}), and {task.title} may have a job already: try again later")
    if status.ended:
        return None
    if record["key"] != task.key:
        line = f"{task.title}: Slurm job {job} ({status.state}) runs it with other settings or code: `scancel {job}`, or wait for it"
        return Sent(job, new=False, refusal=line)
    return Sent(job, new=False)
