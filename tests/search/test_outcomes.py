"""What a search has found: which trial is best, the journal, the pictures, and MLflow's runs."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.searches import known
from PIL import Image

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.search import pictures as search_pictures
from pipeline.search import trial, trials
from pipeline.search.space import Range, Search
from pipeline.search.trials import Outcome


def outcome(number: int, state: Any, *scores: float) -> Outcome:
    steps = (10, 30, 90)
    return Outcome(number=number, values={"train.lr": number}, state=state, scores=tuple(zip(steps, scores, strict=False)), reason=None)


def test_the_best_is_compared_at_equal_steps() -> None:
    early, ahead, failed = outcome(0, "early", 0.9), outcome(1, "early", 0.1, 0.2), outcome(2, "failed", 0.9, 0.9, 0.95)
    low, tie, high = outcome(3, "finished", 0.1, 0.1, 0.3), outcome(4, "finished", 0.3, 0.3, 0.4), outcome(5, "finished", 0.2, 0.3, 0.4)
    everything = [early, ahead, failed, low, high, tie]
    assert [each.number for each in trials.ranked(everything)] == [4, 5, 3, 1, 0, 2]
    assert trials.best(everything) == tie
    assert trials.best([early, ahead, failed]) == ahead
    assert trials.best([failed]) is None
    rows = trials.table(["train.lr"], everything).decode().splitlines()
    assert rows[0] == "trial,train.lr,miou,steps,state,seconds,reason"
    assert rows[1] == "5,4,0.400000,90,finished,0.0,"
    assert rows[-1].startswith("3,2,0.950000,90,failed")


def test_the_journal_outlives_the_trials_folders_and_a_failed_trial_without_one_is_tried_again(tmp_path: Path) -> None:
    found = trials.Trials(tmp_path)
    for number in (0, 1, 2):
        found.begin({"train.lr": number})
        files.write_json(trial.place(tmp_path, {"train.lr": number}) / "trial.json", {"scores": {"12": 0.5, "4": 0.25}, "seconds": 2.0})
    for number, state in enumerate(("finished", "failed", "failed")):
        found.end(number, state)  # type: ignore[arg-type]
    for number in (0, 2):
        shutil.rmtree(trial.place(tmp_path, {"train.lr": number}))
    again = trials.Trials(tmp_path).all
    assert [outcome.state for outcome in again] == ["finished", "failed", "running"]
    assert again[0].scores == ((4, 0.25), (12, 0.5))
    assert again[2].scores == ()
    (tmp_path / "trials.json").write_text("[{")
    with pytest.raises(UserError, match=r"trials.json is damaged .*delete"):
        trials.Trials(tmp_path)


def test_the_importance_is_that_of_the_parameter_that_counts(tmp_path: Path) -> None:
    space = {"train.lr": Range(low=0.01, high=1.0, log=True), "superpixels.slic.segments": Range(low=10, high=90, whole=True)}
    wide = Search(run="ecrf", space=space, algorithm="random", trials=30)
    made = known(wide, 30, lambda values: None if values["superpixels.slic.segments"] > 80 else values["superpixels.slic.segments"] / 100)
    steps, shares = search_pictures.shares_of(wide, made)
    assert steps == 10
    assert shares["superpixels.slic.segments"] > 0.9
    assert abs(sum(shares.values()) - 1) < 1e-6
    assert search_pictures.shares_of(wide, made[:2]) == (10, {})
    drawn = search_pictures.draw(wide, made, tmp_path)
    assert [path.name for path in drawn] == ["parallel.png", "importance.png", "miou-train.lr.png", "miou-superpixels.slic.segments.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
        assert path.with_name(f"{path.stem}.svg").read_text().rstrip().endswith("</svg>")
    only_failed = [outcome(0, "failed"), outcome(1, "failed")]
    search_pictures.draw(replace(wide, space={"train.lr": Range(low=0, high=2)}), only_failed, tmp_path / "failed")


def test_mlflow_gets_a_search_once_with_a_run_for_each_trial_in_it(workspace: Path) -> None:
    folder = workspace / "tune/search-x"
    found = trials.Trials(folder)
    for number in (0, 1, 2):
        found.begin({"train.lr": 0.1 * (number + 1), "methods.ksac.head.rates": [1, number]})
        scores = {"4": 0.1, "12": 0.2 + number} if number < 2 else {}
        files.write_json(trial.place(folder, found.all[number].values) / "trial.json", {"scores": scores, "seconds": 1.0})
    found.end(0, "finished")
    found.end(2, "failed", "not finite")
    files.write_bytes(folder / "trials.csv", b"trial\n")
    files.write_bytes(folder / "pictures/parallel.png", b"png")
    order = {"experiment": "scenes", "name": "search ecrf", "seed": 0, "fingerprint": "x", "settings": {"run": "ecrf"}, "started": 1e9}
    files.write_json(folder / "mlflow.json", order | {"record": str(folder / "trials.csv"), "status": "FINISHED"})
    command = [sys.executable, "-W", "ignore", "-m", "pipeline.search.tracking", str(folder / "mlflow.json"), "-1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(2):
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        with contextlib.closing(sqlite3.connect("mlflow.db")) as store:
            runs_ = dict(store.execute("select name, run_uuid from runs"))
            rows = store.execute("select run_uuid, step, value from metrics where key = 'miou' order by value").fetchall()
            parents = store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'").fetchall()
            states = dict(store.execute("select name, status from runs"))
        names = [f"search ecrf trial {number} seed 0" for number in (1, 2, 3)]
        assert sorted(runs_) == ["search ecrf seed 0", *names]
        assert sorted(parents) == sorted((runs_[name], runs_["search ecrf seed 0"]) for name in names)
        expected = [(runs_[names[0]], 4, 0.1), (runs_[names[1]], 4, 0.1), (runs_[names[0]], 12, 0.2), (runs_[names[1]], 12, 1.2)]
        assert sorted(rows) == sorted(expected)
        assert [states[name] for name in names] == ["FINISHED", "RUNNING", "FAILED"]
    assert len(list(Path("mlartifacts").rglob("parallel.png"))) == 1
