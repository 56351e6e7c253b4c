"""MLflow as a mirror of the record: what stands in metrics.jsonl and results/ reaches the server once, now or later.

MLflow runs in a process of its own (pipeline/tracking/process.py), because importing it takes four seconds of a training's processor and
because a server that hangs can then be left behind. The record beside the run is the truth.
"""

import contextlib
import getpass
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.ground import files
from pipeline.ground.codebase import ROOT, commit
from pipeline.ground.progress import warn
from pipeline.tracking.attempt import ATTEMPT, Attempt, address, reason, shown
from pipeline.tracking.copy import Copy

PROCESS = "pipeline.tracking.process"
PATIENCE = 30.0  # seconds that the end of a stage waits for MLflow, its import included


class Mirror:
    """Mirrors a training's record while the block runs, and once more when it ends.

    Nothing that MLflow does reaches the block: no exception, no wait but the last one, which `PATIENCE` bounds. `every` is
    in seconds; `tags` are the run's besides `origin`'s, free to change between resumes.
    """

    def __init__(
        self,
        *,
        experiment: str,
        name: str,
        seed: int,
        fingerprint: str,
        settings: Mapping[str, Any],
        record: Path,
        enabled: bool = True,
        every: float = 30.0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.attempt = Attempt(
            experiment=experiment, name=name, seed=seed, fingerprint=fingerprint, settings=settings, record=str(record),
            tags=tags or {}, started=time.time(),
        )  # fmt: skip
        self.file, self.enabled, self.every = record.with_name(ATTEMPT), enabled, every
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Mirror":
        if self.enabled and installed():
            with excused(str(self.file)):
                stage = "finetune" if self.attempt.settings.get("finetune") else "train"
                self.attempt = replace(self.attempt, tags=origin(f"python -m stages.{stage} {self.attempt.name}") | dict(self.attempt.tags))
                files.write_json(self.file, asdict(self.attempt))
                self.process = start(PROCESS, "follow", str(self.file), str(self.every))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None:
            killed = kind is not None and not issubclass(kind, Exception)  # Ctrl-C, sys.exit on a signal
            status = "KILLED" if killed else "FAILED" if kind else "FINISHED"
            with excused(str(self.file)):
                files.write_json(self.file, asdict(replace(self.attempt, status=status)))
            finish(self.process, f"{self.attempt.record} is sent when {self.attempt.name} is next trained or evaluated")


def mirror(experiment: str, name: str, seed: int, fingerprint: str, settings: Mapping[str, Any], record: Path) -> None:
    """One pass of a record in this process; it may be repeated at will. Raises whatever MLflow raises."""
    attempt = Attempt(
        experiment=experiment, name=name, seed=seed, fingerprint=fingerprint, settings=settings, record=str(record), started=time.time()
    )
    Copy(attempt).send(attempt)


def mirror_results(
    experiment: str, results: Mapping[str, Any], fingerprints: Mapping[int, str], pictures: Path | None, enabled: bool = True
) -> None:
    """Log an evaluation (the content of results/<evaluation>.json) into its seeds' runs, with the record where MLflow lacks it.

    `fingerprints` are those of the weights, by seed; `pictures` is a folder of PNG files. What MLflow has already is not sent again.
    """
    if not enabled or not installed():
        return
    with excused(f"results/{results['evaluation']}.json"):
        process = start(PROCESS, "results")
        order = {"experiment": experiment, "results": results, "fingerprints": dict(fingerprints), "pictures": pictures and str(pictures)}
        finish(process, f"results/{results['evaluation']}.json is sent by the next evaluation", json.dumps(order))


def installed() -> bool:
    """Whether MLflow is there; a warning says that tracking is off where it is not."""
    with contextlib.suppress(ValueError):
        if importlib.util.find_spec("mlflow") is not None:
            return True
    warn("mlflow is not installed: tracking is off (the record stays in runs/)")
    return False


def origin(command: str) -> dict[str, str]:
    """The tags in which MLflow shows who began a run, by which command, at which commit; and the machine."""
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL", "host": socket.gethostname()}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if (known := commit()) is not None:
        tags["mlflow.source.git.commit"] = known
    return tags


@contextlib.contextmanager
def excused(what: str) -> Iterator[None]:
    """Tracking never stops the work: an error becomes a warning."""
    try:
        yield
    except Exception as error:
        warn(f"{what} is not mirrored to MLflow: {reason(error)}")


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of ours that talks to MLflow. Its own group: Ctrl-C is for the training, whose end it waits for."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], later: str, order: str | None = None) -> None:
    """Close the process's input, which asks it for its last pass, and wait within bounds."""
    try:
        process.communicate(order, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        if "warned" not in process.communicate()[0]:
            warn(f"MLflow at {shown(address())} did not answer within {PATIENCE:.0f} s: {later}")
    finally:
        process.kill()
        process.wait()
