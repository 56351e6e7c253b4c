"""A search on a real Ray: what it finds, workers and drivers that are killed, and two searches at once."""

import csv
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from makers.project import Project
from makers.ray_marks import MARKS

from pipeline.search import space as search
from pipeline.search.space import Search
from pipeline.search.trial import Trial, scores
from pipeline.search.trials import Trials, place
from pipeline.settings import config as configs

pytestmark = MARKS
BOUND = 400  # seconds for one wait, whatever hangs
AWAY = "http://127.0.0.1:9"  # where no MLflow server answers


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Ray reads variables, and sets some."""
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0"}
    yield
    os.environ.clear()
    os.environ.update(before)


def wait_until(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def the_search() -> tuple[Search, Path]:
    """The search that params.yaml declares, and its only folder."""
    (folder,) = Path("tune").glob("search-*")
    return search.read(configs.load()), folder


def holder(trial: Path) -> int:
    """The process that runs a trial, as its lock names it."""
    found = re.match(r"process (\d+) ", (trial / "lock").read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="module")
def grid(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished search of four trials, two at a time, half of which fail in training, while MLflow's server is away."""
    folder = tmp_path_factory.mktemp("grid") / "project"
    shutil.copytree(prepared_project, folder)
    project = Project(folder)
    project.profile["tracking"] = True
    project.params["train"]["clip"] = None
    space = {"train.lr": {"values": [0.02, 1e30]}, "methods.fcn.head.width": {"values": [8, 16]}}
    project.params["tune"] = {"run": "fcn", "space": space, "algorithm": "grid", "concurrent": 2, "grace": 0.5, "reduction": 2}
    os.environ["MLFLOW_TRACKING_URI"] = AWAY
    assert project.stage("tune") == 0
    del os.environ["MLFLOW_TRACKING_URI"]
    return project


def test_what_a_search_leaves(grid: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(grid.folder)
    with Path("tune/trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows[2:]] == ["failed", "failed"]
    assert rows[0]["state"] == "finished"
    assert {float(row["train.lr"]) for row in rows[:2]} == {0.02}
    for row in rows[2:]:
        assert "not finite" in row["reason"]
        assert row["miou"] == ""
    assert yaml.safe_load(Path("tune/best.yaml").read_text()) == {
        "train.lr": 0.02,
        "methods.fcn.head.width": int(rows[0]["methods.fcn.head.width"]),
    }
    assert {path.name for path in Path("tune/pictures").glob("*.png")} == {
        "parallel.png", "miou-train.lr.png", "miou-methods.fcn.head.width.png",
    }  # fmt: skip
    wanted, folder = the_search()
    assert not list(folder.glob("trials/*/runs/*/checkpoints"))
    assert not (folder / "ray").exists()

    first = Trial.of(grid.folder, Path("alone"), wanted, {"train.lr": 0.02, "methods.fcn.head.width": 8}, configs.load().launch)
    in_search = json.loads((place(folder, first.values) / "trial.json").read_text())["scores"]
    assert {str(steps): miou for _, steps, miou in scores(first)}.items() >= in_search.items()

    before = Path("tune/trials.csv").read_bytes()
    assert grid.stage("tune") == 0  # at once, and without Ray
    assert "of 4 trials 4 have ended before" in capfd.readouterr().out
    assert Path("tune/trials.csv").read_bytes() == before


def test_a_search_that_is_killed_goes_on_and_takes_more_trials(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """Its first trial's process is killed, as the kernel does when memory runs out; in its second the search itself is."""
    project.params["train"]["iterations"] = 200
    project.params["tune"] = {"run": "fcn", "space": {"train.lr": {"low": 0.01, "high": 0.1}}, "trials": 2, "asha": False}
    running = project.start("tune")
    try:
        wait_until(lambda: list(Path("tune").glob("search-*/trials/*/runs/fcn/checkpoints/*/seed-0/step-*.pt")) or not running.is_alive())
        assert running.is_alive()
        _, folder = the_search()
        first = place(folder, Trials(folder).all[0].values)
        assert project.stage("tune") == 2  # a second search at once
        assert re.search(r"error: the search tune/search-\w+ is already being written by process \d+", capfd.readouterr().err)
        os.kill(holder(first), signal.SIGKILL)
        wait_until(lambda: len(Trials(folder).all) == 2)
        second = place(folder, Trials(folder).all[1].values)
        wait_until(lambda: list(second.glob("runs/fcn/checkpoints/*/seed-0/step-*.pt")) or not running.is_alive())
        assert running.is_alive()
        orphan = holder(second)
    finally:
        running.kill()
        running.join()
    wait_until(lambda: not Path(f"/proc/{orphan}").exists())

    project.params["tune"]["trials"] = 3
    assert project.stage("tune") == 0
    assert "of 3 trials 1 have ended before, 1 go on" in capfd.readouterr().out
    found = Trials(folder).all
    assert [outcome.state for outcome in found] == ["failed", "finished", "finished"]
    assert "its process was lost" in (found[0].reason or "")
    assert place(folder, found[1].values) == second
    assert re.search(r"training from step [1-9]", (second / "runs/fcn/seed-0/log.txt").read_text())
    assert len(list(Path("tune").glob("search-*"))) == 1
