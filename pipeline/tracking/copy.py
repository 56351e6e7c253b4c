"""MLflow's copy of a run and the store that it is in: the one file that imports mlflow, in a process of its own (process.py).

Everything that a pass sends is keyed by what it is (a run by name, seed and fingerprint; a value by its step; an evaluation by a digest),
so a pass may be repeated, killed and repeated again. Nothing is read back from MLflow except what it already has.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import sqlite3
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ground import files
from pipeline.tracking.attempt import Attempt, address, flat, identity, number, parts, read_record, shown, text, word

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
    run_name, tags = f"{attempt.name} seed {attempt.seed}", dict(attempt.tags) | identity(attempt)
    return client.create_run(experiment.experiment_id, start_time=start_time, tags=tags, run_name=run_name)


def library() -> Any:
    """MLflow's module, with our store as its own, for pipeline/release/registry.py."""
    import mlflow

    mlflow.set_tracking_uri(address())
    return mlflow
