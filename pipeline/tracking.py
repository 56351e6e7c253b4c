"""MLflow as a mirror of the record: what stands in metrics.jsonl and results/ reaches the server once, now or later.

MLflow runs in a process of its own, because importing it takes four seconds of a training's processor and because a
server that hangs can then be left behind. The record beside the run is the truth; nothing is read back from MLflow
except what it already has. Everything that a pass sends is keyed by what it is (a run by name, seed and fingerprint; a
value by its step; an evaluation by a digest), so a pass may be repeated, killed and repeated again.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline import files
from pipeline.attempt import ATTEMPT, Attempt, address, flat, identity, number, parts, read_record, reason, shown, text, word
from pipeline.progress import warn

PATIENCE = 30.0  # seconds that the end of a stage waits for MLflow, its import included
BRIEFLY = 4.0  # seconds for a first answer
BATCH = 900  # values in one request; MLflow takes 1000
PARAMETERS = 90  # MLflow takes 100
# Values that the user's own environment overrides.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Settings that may change between two resumes of one run (MLflow's parameters may not), and hashes, which the fingerprint sums up.
NOT_PARAMETERS = re.compile(r"(launch|inputs)\.|train\.seeds$")


class Mirror:
    """Mirrors a training's record while the block runs, and once more when it ends.

    Nothing that MLflow does reaches the block: no exception, no wait but the last one, which `PATIENCE` bounds. `every` is
    in seconds; `tags` are MLflow's (device, commit ...), free to change between resumes.
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
                files.write_json(self.file, asdict(self.attempt))
                self.process = start("follow", str(self.file), str(self.every))
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
        process = start("results")
        order = {"experiment": experiment, "results": results, "fingerprints": dict(fingerprints), "pictures": pictures and str(pictures)}
        finish(process, f"results/{results['evaluation']}.json is sent by the next evaluation", json.dumps(order))


def installed() -> bool:
    """Whether MLflow is there; a warning says that tracking is off where it is not."""
    with contextlib.suppress(ValueError):
        if importlib.util.find_spec("mlflow") is not None:
            return True
    warn("mlflow is not installed: tracking is off (the record stays in runs/)")
    return False


@contextlib.contextmanager
def excused(what: str) -> Iterator[None]:
    """Tracking never stops the work: an error becomes a warning."""
    try:
        yield
    except Exception as error:
        warn(f"{what} is not mirrored to MLflow: {reason(error)}")


def start(*arguments: str) -> subprocess.Popen[str]:
    """The process that talks to MLflow. Its own group: Ctrl-C is for the training, whose end it waits for."""
    root = str(Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "pipeline.mirroring", *arguments],
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


# What follows runs in that process (pipeline.mirroring).


class Copy:
    """MLflow's copy of one run: found by its tags or begun, and what it has so far."""

    def __init__(self, attempt: Attempt) -> None:
        self.client = connect()
        run = find(self.client, attempt) or begin(self.client, attempt)
        self.id, self.start, self.status = run.info.run_id, run.info.start_time, run.info.status
        self.parameters, self.tags = set(run.data.params), dict(run.data.tags)
        keys = [key for key in run.data.metrics if "/" not in key]  # the others are evaluations'
        self.steps = {key: max(value.step for value in self.client.get_metric_history(self.id, key)) for key in keys}

    def send(self, attempt: Attempt, rows: Sequence[dict[str, Any]] | None = None) -> None:
        """Send what MLflow lacks: parameters, tags, rows (the record's, unless given) after the last step it has, and the status."""
        from mlflow.entities import Metric, Param, RunTag

        settings = flat(attempt.settings, ".")
        missing = {key: value for key, value in settings.items() if key not in self.parameters and not NOT_PARAMETERS.match(key)}
        for some in parts([Param(key, text(value)) for key, value in missing.items()], PARAMETERS):
            self.client.log_batch(self.id, params=some)
        self.parameters |= set(missing)
        tags = {key: text(value) for key, value in settings.items() if key.startswith("launch.")} | dict(attempt.tags)
        changed = {key: value for key, value in tags.items() if self.tags.get(key) != value}
        for some in parts([RunTag(key, value) for key, value in changed.items()], PARAMETERS):
            self.client.log_batch(self.id, tags=some)
        self.tags |= changed
        if rows is None:
            rows = read_record(Path(attempt.record)) if attempt.record else []
        news = [Metric(key, value, stamp, step) for key, value, stamp, step in self.news(rows)]
        for some in parts(news, BATCH):
            self.client.log_batch(self.id, metrics=some)
            self.steps |= {metric.key: metric.step for metric in some}
        self.set_status(attempt)

    def news(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, int, int]]:
        """Key, value, time (ms) and step of what lies beyond the copy. A tail that was cut and logged again is there already."""
        for row in rows:
            stamp = self.start + int(1000 * row["seconds"] if number(row.get("seconds")) else row["step"])
            for key, value in row.items():
                if key != "step" and number(value) and row["step"] > self.steps.get(word(key), -1):
                    yield word(key), float(value), stamp, row["step"]

    def set_status(self, attempt: Attempt) -> None:
        """The run's status; it ended when its record was last written."""
        if attempt.record is None or attempt.status == self.status:
            return
        if attempt.status == "RUNNING":
            self.client.update_run(self.id, status="RUNNING")
        else:
            record = Path(attempt.record)
            ended = record.stat().st_mtime if record.exists() else time.time()
            self.client.set_terminated(self.id, attempt.status, int(1000 * ended))
        self.status = attempt.status

    def send_results(self, evaluation: str, values: Mapping[str, Any], pictures: list[Path]) -> None:
        """One seed's numbers as metrics `<evaluation>/...` and the pictures as artifacts, unless the copy has exactly these."""
        from mlflow.entities import Metric, RunTag

        content = json.dumps(values, sort_keys=True)
        digest = hashlib.sha256("".join([content, *(path.name + files.sha256(path) for path in pictures)]).encode()).hexdigest()
        if self.tags.get(f"{evaluation}.digest") == digest:
            return
        now = int(1000 * time.time())
        metrics = [Metric(f"{evaluation}/{key}", float(value), now, 0) for key, value in flat(values, "/").items() if number(value)]
        for some in parts(metrics, BATCH):
            self.client.log_batch(self.id, metrics=some)
        self.client.log_text(self.id, content, f"{evaluation}/results.json")
        for path in pictures:
            self.client.log_artifact(self.id, str(path), f"{evaluation}/pictures" if path.parent.name == "pictures" else evaluation)
        self.client.log_batch(self.id, tags=[RunTag(f"{evaluation}.digest", digest)])

    def send_files(self, paths: Sequence[Path]) -> None:
        """The files as artifacts, unless the copy has exactly these."""
        from mlflow.entities import RunTag

        digest = hashlib.sha256("".join(path.name + files.sha256(path) for path in paths).encode()).hexdigest()
        if paths and self.tags.get("files.digest") != digest:
            for path in paths:
                self.client.log_artifact(self.id, str(path))
            self.client.log_batch(self.id, tags=[RunTag("files.digest", digest)])
            self.tags["files.digest"] = digest


def connect() -> Any:
    """A client of the store; MLflow's chatter is switched off."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    uri = address()
    try_store(uri)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return MlflowClient(tracking_uri=uri)
    with files.locked(Path("mlflow.db.lock"), "mlflow.db", wait=True):  # two that create its tables at once fail
        return MlflowClient(tracking_uri=uri)


def try_store(uri: str) -> None:
    """Find out about a SQLite file that someone holds, or a server that is away, before MLflow is imported. Raises what it met."""
    file = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if uri.startswith("sqlite:///") and file.is_file():
        with contextlib.closing(sqlite3.connect(file, timeout=BRIEFLY, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    elif uri.startswith("http"):
        try:
            urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=BRIEFLY).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500:  # anything else is a server that answers
                raise
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # MLflow has its own settings for certificates
                raise


def find(client: Any, attempt: Attempt) -> Any | None:
    """The run that carries the attempt's name, seed and fingerprint."""
    experiment = client.get_experiment_by_name(attempt.experiment)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise RuntimeError(f"its experiment {attempt.experiment} is deleted; `mlflow experiments restore` or `mlflow gc` mends that")
    asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity(attempt).items())
    found = client.search_runs([experiment.experiment_id], asked, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def begin(client: Any, attempt: Attempt) -> Any:
    """A new run, in the dataset's experiment."""
    if (experiment := client.get_experiment_by_name(attempt.experiment)) is None:
        ours = None if os.environ.get("MLFLOW_TRACKING_URI") else str(Path("mlartifacts", word(attempt.experiment)).absolute())
        with contextlib.suppress(Exception):  # someone else created it in this moment
            client.create_experiment(attempt.experiment, artifact_location=ours)
        experiment = client.get_experiment_by_name(attempt.experiment)
    start_time = int(1000 * (attempt.started or time.time()))
    run_name = f"{attempt.name} seed {attempt.seed}"
    return client.create_run(experiment.experiment_id, start_time=start_time, tags=identity(attempt), run_name=run_name)


def library() -> Any:
    """MLflow's module, with our store as its own, for pipeline/registry.py."""
    import mlflow

    mlflow.set_tracking_uri(address())
    return mlflow
