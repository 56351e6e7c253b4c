"""MLflow mirrors the record; whatever it does, the training's block ends well, with one warning at most."""

import contextlib
import getpass
import http.server
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.tracking import attempt, mirror, process

ROOT = Path(__file__).parents[2]
SETTINGS = {"name": "fcn", "head": {"name": "fcn", "rates": [1, 2]}, "launch": {"processes": 1}, "train": {"lr": 0.1, "seeds": [0]}}


@pytest.fixture
def record(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of a training; MLflow may take its time, since a busy machine imports it slowly."""
    monkeypatch.setattr(mirror, "PATIENCE", 300.0)
    path = workspace / "runs/fcn/seed-0/metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(rows(10, 110))
    return path


def rows(first: int, end: int, factor: float = 1.0) -> str:
    steps = range(first, end, 10)
    return "".join(json.dumps({"step": step, "loss": factor / step, "lr": 0.1, "seconds": step / 2, "none": None}) + "\n" for step in steps)


def mirrored(record: Path, **changes: object) -> mirror.Mirror:
    options = {"experiment": "scenes", "name": "fcn", "seed": 0, "fingerprint": "abc", "settings": SETTINGS, "record": record, "every": 0.2}
    return mirror.Mirror(**(options | changes))  # type: ignore[arg-type]


def ask(query: str, file: str = "mlflow.db") -> list[tuple]:
    """MLflow's tables, read without MLflow."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute(query).fetchall()


def curve() -> list[tuple]:
    return ask("select step, value from metrics where key = 'loss' order by step")


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def steps_in_store() -> int:
    try:
        return len(curve())
    except sqlite3.OperationalError:
        return 0


PASSES = """
import json
from pathlib import Path
from pipeline.tracking import mirror, process
settings, record, resumed, order = json.load(open("passes.json"))
for content in ("", "", resumed):
    path = Path(record)
    path.write_text(content or path.read_text())
    mirror.mirror("scenes", "fcn", 0, "abc", settings, path)
process.send_evaluation(order)
process.send_evaluation(order)
"""


def test_passes_may_be_repeated_and_a_resume_goes_on_in_the_same_run(record: Path) -> None:
    Path("pictures").mkdir()
    for name in ("pictures/one.png", "grid.png"):
        Image.new("RGB", (4, 4)).save(name)
    numbers = {"single_scale": {"miou": 0.25, "iou": {"a/b|<c>": 0.5, "never seen": None}}}
    results = {"evaluation": "fcn", "run": "fcn", "images": 3, "per_seed": [{"seed": 0, **numbers}], "cost": {"flops": 5}}
    order = {"experiment": "scenes", "results": results, "fingerprints": {"0": "abc"}, "pictures": "pictures"}
    # A killed attempt logged up to 200 and a torn line; the resumed one begins at 100 and logs the same again.
    record.write_text(rows(10, 210) + '{"step": 210, "lo')
    Path("passes.json").write_text(json.dumps([SETTINGS, str(record), rows(10, 310), order]))
    subprocess.run([sys.executable, "-c", PASSES], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert curve() == [(step, 1 / step) for step in range(10, 310, 10)]
    assert dict(ask("select key, value from params")) == {"name": "fcn", "head.name": "fcn", "head.rates": "[1, 2]", "train.lr": "0.1"}
    assert {("fingerprint", "abc"), ("launch.processes", "1")} < set(ask("select key, value from tags"))
    assert len(ask("select * from runs")) == 1
    found = dict(ask("select key, value from metrics where key like 'fcn/%'"))
    assert found == {"fcn/cost/flops": 5, "fcn/images": 3, "fcn/single_scale/iou/a_b__c_": 0.5, "fcn/single_scale/miou": 0.25}
    assert ask("select count(*) from metrics where key like 'fcn/%'") == [(4,)]
    logged = {path.relative_to(path.parents[1]).as_posix() for path in Path("mlartifacts").rglob("*.*")}
    assert logged == {"pictures/one.png", "fcn/grid.png", "fcn/results.json"}


def test_each_seeds_run_gets_its_own_numbers_and_the_first_the_pictures(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple] = []

    class Copy:
        def __init__(self, attempt: attempt.Attempt) -> None:
            self.seed = attempt.seed

        def send(self, attempt: attempt.Attempt) -> None:
            pass

        def send_results(self, evaluation: str, values: dict, pictures: list[Path]) -> None:
            sent.append((self.seed, evaluation, values, [path.name for path in pictures]))

    monkeypatch.setattr(process, "Copy", Copy)
    Path("results/pictures").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save("results/grid.png")
    seeds = [{"seed": 3, "miou": 0.3}, {"seed": 5, "miou": 0.5}]
    results = {
        "evaluation": "fcn",
        "run": "fcn",
        "images": 2,
        "adjacent_class_weight_cosine": 0.1,
        "cost": {"flops": 7, "train_seconds": 15, "per_seed": [{"seed": 3, "train_seconds": 10}, {"seed": 5, "train_seconds": 20}]},
    }
    order = {"experiment": "scenes", "fingerprints": {"3": "a", "5": "b"}, "pictures": "results/pictures"}
    process.send_evaluation({**order, "results": {**results, "per_seed": seeds}})
    assert sent == [
        (3, "fcn", {"miou": 0.3, "images": 2, "cost": {"flops": 7, "train_seconds": 10}}, ["grid.png"]),
        (5, "fcn", {"miou": 0.5, "images": 2, "cost": {"flops": 7, "train_seconds": 20}}, []),
    ]


def test_a_training_is_seen_while_it_runs_and_its_error_after_it(record: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="as tested"), mirrored(record):  # noqa: PT012
        wait_for(lambda: steps_in_store() == 10)
        assert ask("select name, status from runs") == [("fcn seed 0", "RUNNING")]
        with record.open("a") as file:
            file.write(rows(110, 210))
        raise RuntimeError("as tested")
    assert [step for step, _ in curve()] == list(range(10, 210, 10))
    assert ask("select status from runs") == [("FAILED",)]
    shown = {("mlflow.source.name", "python -m stages.train fcn"), ("mlflow.user", getpass.getuser()), ("host", socket.gethostname())}
    assert shown < set(ask("select key, value from tags"))
    assert ask("select user_id from runs") == [(getpass.getuser(),)]
    assert capfd.readouterr().err == ""


def test_tags_say_who_began_a_run_where_and_at_which_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "commit", lambda: "abc+")
    found = mirror.origin("python -m stages.tune")
    assert found == {
        "mlflow.source.name": "python -m stages.tune", "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": "abc+",
        "mlflow.user": getpass.getuser(), "host": socket.gethostname(),
    }  # fmt: skip
    monkeypatch.setattr(mirror, "commit", lambda: None)  # of a queued job's copy of the code
    monkeypatch.setattr(getpass, "getuser", lambda: {}["nobody"])  # of a container
    assert sorted(mirror.origin("x")) == ["host", "mlflow.source.name", "mlflow.source.type"]


def test_records_of_other_fingerprints_are_other_runs_and_can_be_sent_by_hand(workspace: Path) -> None:
    for factor, fingerprint in enumerate(("abc", "other"), start=1):
        folder = workspace / fingerprint
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(rows(10, 110, factor))
        values = {"experiment": "scenes", "name": "fcn", "seed": 0, "fingerprint": fingerprint, "record": str(folder / "metrics.jsonl")}
        (folder / "mlflow.json").write_text(json.dumps(values | {"status": "FINISHED"}))
    command = [sys.executable, "-m", "pipeline.tracking.process", "abc/mlflow.json", "other/mlflow.json"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    by_run = "from metrics m join tags t using (run_uuid) where t.key = 'fingerprint' and m.key = 'loss' group by 1"
    assert sorted(ask(f"select t.value, count(*), max(m.value) {by_run}")) == [("abc", 10, 0.1), ("other", 10, 0.2)]
    assert len(ask("select * from experiments where name = 'scenes'")) == 1


def test_a_locked_file_costs_one_warning_and_is_made_up_for(record: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        other.execute("create table theirs (x)")
        other.execute("begin exclusive")
        with mirrored(record):
            pass
        other.execute("rollback")
        other.execute("drop table theirs")
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert warning.startswith("warning: MLflow at sqlite:///")
    assert "locked" in warning
    assert "runs/fcn/seed-0" in warning
    results = {"evaluation": "fcn", "run": "fcn", "per_seed": [{"seed": 0, "single_scale": {"miou": 0.5}}]}
    mirror.mirror_results("scenes", results, {0: "abc"}, None)
    assert len(curve()) == 10
    assert ask("select status from runs") == [("FINISHED",)]
    assert capfd.readouterr().err == ""


class Broken(http.server.BaseHTTPRequestHandler):
    """A server that fails, or (`silence`) that takes requests and never answers."""

    silence = threading.Event()

    def do_GET(self) -> None:
        if self.path.startswith("/hang"):
            self.silence.wait()
        with contextlib.suppress(OSError):
            self.send_error(500, "out of order")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def broken() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Broken.silence.set()
        server.shutdown()
        thread.join()
        Broken.silence.clear()


def test_servers_that_fail_hang_or_are_away_cost_one_warning_each(
    record: Path, broken: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"http://someone:secret@127.0.0.1:{nobody.getsockname()[1]}"
        with contextlib.ExitStack() as stack:  # all at once
            for uri in (broken, f"{broken}/hang", away):
                monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
                stack.enter_context(mirrored(record))
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert all(line.startswith("warning: MLflow at http://") for line in warnings)
    assert "secret" not in "".join(warnings)
    assert not Path("mlflow.db").exists()


def test_a_process_that_never_ends_is_left_behind(record: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stuck = [sys.executable, "-c", "import time; time.sleep(1000)"]
    started = []

    def start(*_: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(stuck, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[0]

    monkeypatch.setattr(mirror, "start", start)
    monkeypatch.setattr(mirror, "PATIENCE", 0.2)
    with mirrored(record):
        pass
    assert started[0].returncode == -9
    assert capfd.readouterr().err.count("warning: MLflow at sqlite:///") == 1


def test_without_mlflow_tracking_is_off_with_a_warning(
    record: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with mirrored(record) as mirror:
        assert mirror.process is None
    assert capfd.readouterr().err == "warning: mlflow is not installed: tracking is off (the record stays in runs/)\n"
    with mirrored(record, enabled=False):
        pass
    assert capfd.readouterr().err == ""


def test_keys_take_the_letters_that_mlflow_takes() -> None:
    assert attempt.flat({"iou": {"a/b": 1, "..": 2, "ü|x": 3, "": 4}}, "/") == {"iou/a_b": 1, "iou/_..": 2, "iou/__x": 3, "iou/_": 4}
    assert attempt.shown("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert [attempt.number(value) for value in (1, 0.5, True, None, float("nan"), "1")] == [True, True, False, False, False, False]
