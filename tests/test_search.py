"""A search: what is refused, and a trial that is trained in turns, killed and scored."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project

from pipeline import config as configs
from pipeline import prepared, runs, search, trial
from pipeline.errors import UserError
from pipeline.trial import Trial

SPACE: dict[str, Any] = {"superpixels.slic.segments": {"low": 10, "high": 60, "whole": True}}


def declared(project: Project, **tune: Any) -> search.Search:
    project.params["tune"] = {"run": "ecrf", "space": SPACE} | tune
    project.write()
    return search.read(configs.load())


def test_a_search_is_read_with_its_defaults(project: Project) -> None:
    found = declared(project)
    assert (found.algorithm, found.trials, found.split, found.asha) == ("tpe", 20, None, True)
    assert found.space["superpixels.slic.segments"].ends == (10, 60)


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"space": {}}, "tune.space is empty"),
        ({"spaces": 1}, "tune.spaces is unknown; did you mean space"),
        ({"run": "nobody"}, "'nobody'"),
        ({"split": "val"}, "tune.split: val is what evaluation ecrf reports"),
        ({"trials": 0}, "tune.trials"),
        ({"space": {"train.lr": {"low": 0.1, "high": 0.1}}}, "train.lr is empty: low 0.1 is not below high 0.1"),
        ({"space": {"train.lr": {"low": 0.1}}}, "needs low and high, or values"),
        ({"space": {"train.lr": {"low": 0.0, "high": 1, "log": True}}}, "low must be above 0"),
        ({"space": {"train.lr": {"values": [1, 1]}}}, "fewer than two different"),
        ({"space": {"train.lr": {"low": 0.5, "high": 2, "whole": True}}}, "must be whole"),
        ({"space": {"train.lr": {"least": 0.5}}}, "tune.space.train.lr.least is unknown"),
    ],
)
def test_mistakes_are_named(project: Project, tune: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        declared(project, **tune)
    assert words in str(caught.value)
    assert "params.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"superpixel.slic.segments": {"low": 1, "high": 5}}, "superpixel does not exist; did you mean superpixels"),
        ({"methods.ecrf.crf.pairwise_wait": {"low": 0.1, "high": 0.5}}, "methods.ecrf.crf.pairwise_wait is unknown"),
        ({"train.lr": {"low": -1, "high": 0.5}}, "tune.space: with train.lr=-1.0: train.lr"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_before_anything_runs(
    project: Project, space: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    declared(project, space=space)
    assert project.stage("tune") == 2
    said = capfd.readouterr().err
    assert words in said
    assert not list(Path("tune").glob("*"))


def test_the_same_images_are_held_out_in_every_trial(project: Project) -> None:
    pairs = prepared.read().splits["train"]
    kept, held = trial.parted(pairs, 0.2, 0)
    assert (len(kept), len(held)) == (8, 2)
    assert sorted(pair.name for pair in (*kept, *held)) == sorted(pair.name for pair in pairs)
    assert trial.parted(pairs, 0.2, 0) == (kept, held)
    assert trial.parted(pairs, 0.2, 1) != (kept, held)
    assert [len(part) for part in trial.parted(pairs, 0.999, 0)] == [1, 9]


def test_rungs_are_where_records_are(project: Project) -> None:
    found = declared(project, grace=0.1, reduction=3)
    assert trial.rungs(found, 100, 10) == [10, 30, 90, 100]
    assert trial.rungs(found, 12, 4) == [4, 12]
    assert trial.rungs(declared(project, asha=False), 100, 10) == [100]


def test_a_trial_in_turns_gives_the_weights_of_one_training_and_goes_on_after_a_kill(project: Project) -> None:
    found = declared(project, grace=0.3, reduction=2)
    launch = configs.load().launch
    values = {"superpixels.slic.segments": 12}
    first = Trial.of(project.folder, Path("tune/one"), found, values, launch)
    turns = trial.scores(first)
    step, score = next(turns)
    assert (step, 0 <= score <= 1) == (4, True)
    turns.close()  # as a kill between two turns
    record = yaml.safe_load((first.folder / "trial.json").read_text())
    assert record["values"] == values
    assert record["scores"] == {"4": score}
    scored = dict(trial.scores(first))
    assert list(scored) == [4, 8, 12]
    assert scored[4] == score
    weights = (first.folder / "runs/ecrf/weights/seed-0.pt").read_bytes()

    straight = Trial.of(project.folder, Path("tune/two"), declared(project, asha=False), values, launch)
    assert list(trial.scores(straight)) == [(12, scored[12])]
    assert (straight.folder / "runs/ecrf/weights/seed-0.pt").read_bytes() == weights
    with straight.opened() as (config, score_of), contextlib.suppress(KeyError):
        assert (config.superpixel_set.segments, score_of.split) == (12, trial.HELD_OUT)  # type: ignore[union-attr]
        assert runs.is_finished(config)
    assert Path.cwd() == project.folder
    assert not (project.folder / "runs").exists()


def test_a_failed_trial_says_why(project: Project) -> None:
    found = declared(project)
    bad = Trial.of(project.folder, Path("tune/bad"), found, {"train.lr": 1e9, "train.clip": None}, configs.load().launch)
    with pytest.raises(UserError, match="not finite"):
        list(trial.scores(bad))
    assert "not finite" in yaml.safe_load((bad.folder / "trial.json").read_text())["failure"]
