"""A search: what is refused, what is tried next, which trial is best, and a trial that is trained in turns, killed and scored."""

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.project import Project
from PIL import Image

from models.heads.deeplab import DeepLab
from pipeline.data import prepared
from pipeline.evaluation import evaluate
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.runs import fingerprint, folders
from pipeline.search import pictures, suggestions, trial, trials
from pipeline.search import space as search
from pipeline.search.space import Range, Search
from pipeline.search.trial import Trial
from pipeline.search.trials import Outcome
from pipeline.settings import config as configs
from pipeline.settings.profiles import Launch, Ray, Slurm
from pipeline.settings.schema import SuperpixelSet
from pipeline.superpixels import sets
from stages.check import check

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
        ({"split": "test"}, "tune.split: test is for reports"),
        ({"split": "train"}, "tune.split: train is what a trial trains on"),
        ({"space": {"train.iterations": {"low": 4, "high": 8, "whole": True}}}, "tune.asha compares trials after equal steps"),
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
        ({"methods.ecrf.crf.normalization": {"values": ["none", "sum", "count"]}}, "tune.space: with methods.ecrf.crf.normalization=sum: "),
        ({"methods.ecrf.trian.lr": {"low": 0.1, "high": 0.5}}, "methods.ecrf.trian is unknown; did you mean train"),
        ({"methods.fcn.head.width": {"values": [8, 16]}}, "tune.space.methods.fcn.head.width changes nothing in ecrf"),
        ({"evaluate.flip": {"values": [True, False]}}, "tune.space.evaluate.flip changes nothing in ecrf"),
        ({"data.train_images": {"values": [10, 16]}}, "tune.space.data.train_images: the data is prepared before"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_by_every_stage(
    project: Project, space: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    declared(project, space=space)
    for stage in (("tune",), ("download",), ("train", "fcn")):
        assert project.stage(*stage) == 2
        said = capfd.readouterr().err
        assert words in said
        assert "params.yaml" in said
    assert not list(Path("tune").glob("*"))


def test_a_split_that_is_not_there_is_told(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    declared(project, split="vla")
    assert project.stage("train", "fcn") == 2
    assert "params.yaml: tune.split: scenes has no split 'vla'" in capfd.readouterr().err


def test_parameters_of_many_kinds_may_be_searched(project: Project) -> None:
    """Those that params.yaml leaves to their defaults, an entry's own sections, and lists."""
    space = {
        "superpixels.slic.compactness": {"low": 1, "high": 20, "log": True},
        "methods.ecrf.crf.pairwise_weight": {"low": 0.05, "high": 0.5},
        "methods.ecrf.head.rates": {"values": [[1, 2], [1, 3]]},
        "methods.ecrf.train.lr": {"low": 0.001, "high": 0.1},
        "auxiliary.weight": {"low": 0.1, "high": 1},
        "data.crop": {"values": [[32, 48], [32, 32]]},
    }
    found = declared(project, space=space)
    check(configs.load())
    values = {path: entry.ends[1] for path, entry in found.space.items()}
    with Trial.of(project.folder, Path("tune/x"), found, values, configs.load().launch).opened() as (config, _):
        assert config.head.options["rates"] == [1, 3]
        assert (config.train.lr, config.train.momentum, config.data.crop) == (0.1, 0.9, (32, 32))


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


def record(of: Trial) -> dict[str, Any]:
    return json.loads((of.folder / "trial.json").read_text())


def test_a_trial_in_turns_gives_the_weights_of_one_training_and_goes_on_after_a_kill(project: Project) -> None:
    found = declared(project, grace=0.3, reduction=2)
    launch = configs.load().launch
    values = {"superpixels.slic.segments": 12}
    first = Trial.of(project.folder, Path("tune/one"), found, values, launch)
    turns = trial.scores(first)
    index, step, score = next(turns)
    assert (index, step, 0 <= score <= 1) == (0, 4, True)
    turns.close()  # as a kill between two turns
    assert record(first)["values"] == values
    assert record(first)["scores"] == {"4": score}

    def kill(work: Callable[[Any], None], config: Any) -> None:
        if work is evaluate.evaluate:
            raise KeyboardInterrupt
        work(config)

    with pytest.raises(KeyboardInterrupt):  # as a kill between training and scoring
        next(trial.scores(first, kill))
    assert list(record(first)["scores"]) == ["4"]
    scored = {step: miou for _, step, miou in trial.scores(first)}
    assert list(scored) == [8, 12]
    weights = (first.folder / "runs/ecrf/weights/seed-0.pt").read_bytes()

    straight = Trial.of(project.folder, Path("tune/two"), declared(project, asha=False), values, launch)
    assert list(trial.scores(straight)) == [(0, 12, scored[12])]
    assert (straight.folder / "runs/ecrf/weights/seed-0.pt").read_bytes() == weights
    with straight.opened() as (config, score_of):
        assert config.superpixel_set is not None
        assert (config.superpixel_set.segments, score_of.split) == (12, trial.HELD_OUT)
        assert folders.is_finished(config)
    assert Path.cwd() == project.folder
    assert not (project.folder / "runs").exists()


def test_a_failed_trial_says_why(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    found = declared(project)
    bad = Trial.of(project.folder, Path("tune/bad"), found, {"train.lr": 1e9, "train.clip": None}, configs.load().launch)
    with pytest.raises(UserError, match="not finite"):
        list(trial.scores(bad))
    assert "not finite" in record(bad)["failure"]

    def full(*arguments: Any) -> None:
        raise MemoryError("no 40 GiB")

    monkeypatch.setattr(DeepLab, "forward", full)
    large = bad.at({"train.lr": 0.01})
    with pytest.raises(MemoryError):
        list(trial.scores(large))
    assert record(large)["failure"] == "MemoryError: no 40 GiB"


def test_a_trial_reads_what_the_search_began_with(project: Project) -> None:
    first = Trial.of(project.folder, Path("tune/x"), declared(project), {"train.lr": 0.02}, configs.load().launch)
    project.params["train"]["iterations"] = 99
    project.write()
    with first.opened() as (config, _):
        assert (config.train.iterations, config.train.lr) == (12, 0.02)
    Path("data/prepared.json").write_text(Path("data/prepared.json").read_text() + " ")
    with pytest.raises(UserError, match="has changed since the search began"), first.opened():
        pass


def known(search: Search, count: int, scored: Callable[[dict[str, Any]], float | None]) -> list[Outcome]:
    """Outcomes of a search whose trials score at once."""
    made: list[Outcome] = []
    while len(made) < count and (values := suggestions.suggest(search, made)) is not None:
        score = scored(values)
        state = "failed" if score is None else "early" if score < 0 else "finished"
        made.append(Outcome(number=len(made), values=values, state=state, scores=() if score is None else ((10, score),)))
    return made


WIDE = Search(
    run="ecrf",
    trials=25,
    space={
        "a": Range(low=0.001, high=1.0, log=True),
        "b": Range(low=10, high=60, whole=True),
        "c": Range(values=["none", True, 1, [1, 2]]),
    },
)


def bowl(values: dict[str, Any]) -> float | None:
    """A score that has its best at b = 30 and small a, early ends and failures among them."""
    return None if values["c"] == "none" else 0.5 - abs(values["b"] - 30) / 60 - values["a"] / 4


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_equal_seeds_choose_equally_and_a_search_that_goes_on_chooses_as_one_that_ran_through(algorithm: Any) -> None:
    search = replace(WIDE, algorithm=algorithm)
    whole = known(search, 25, bowl)
    assert [outcome.values for outcome in known(search, 25, bowl)] == [outcome.values for outcome in whole]
    assert len({json.dumps(outcome.values) for outcome in whole}) == 25
    assert suggestions.suggest(search, whole) is None
    assert suggestions.suggest(replace(search, trials=26), whole) is not None
    assert suggestions.suggest(search, whole[:20]) == whole[20].values
    assert [outcome.values for outcome in known(replace(search, seed=1), 25, bowl)] != [outcome.values for outcome in whole]
    for outcome in whole:
        assert 0.001 <= outcome.values["a"] <= 1  # type: ignore[operator]
        assert type(outcome.values["b"]) is int
        assert 10 <= outcome.values["b"] <= 60
        assert any(outcome.values["c"] is value for value in WIDE.space["c"].values or [])


def test_tpe_learns_and_random_does_not() -> None:
    def late(algorithm: Any) -> float:
        made = known(replace(WIDE, algorithm=algorithm, trials=40), 40, lambda values: -abs(values["b"] - 30) / 60 - values["a"])
        return sum(outcome.miou or 0 for outcome in made[20:]) / 20

    assert late("tpe") > late("random") + 0.1


def test_a_grid_is_every_combination_and_a_small_space_ends() -> None:
    space = {"a": Range(low=1.0, high=100.0, log=True), "b": Range(values=[1, 2]), "c": Range(low=1, high=3, whole=True)}
    search = Search(run="ecrf", space=space, algorithm="grid", points=3, trials=1)
    values = [tuple(outcome.values.values()) for outcome in known(search, 99, lambda values: 0.1)]
    assert values == list(itertools.product([1.0, pytest.approx(10.0), 100.0], [1, 2], [1, 2, 3]))
    assert suggestions.size(search) == 18
    few = Search(run="ecrf", space={"b": Range(values=["x", "y", "z"])}, trials=20)
    assert sorted(str(outcome.values["b"]) for outcome in known(few, 99, lambda values: 0.1)) == ["x", "y", "z"]


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


def test_what_names_a_search(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = fingerprint.tree_hash

    def name(**tune: Any) -> str:
        return search.fingerprint_of(search.settings(configs.load(), declared(project, **tune)))

    first = name()
    assert name(trials=50, concurrent=2) == first
    project.params["superpixels"]["slic"]["segments"] = 17  # what is searched
    project.params["methods"]["fcn"]["head"]["width"] = 24  # another method
    project.profile["save_every"] = 3
    assert name() == first
    assert name(seed=1) != first
    project.params["train"]["momentum"] = 0.8
    assert name() != first
    project.params["train"]["momentum"] = 0.9
    assert name() == first
    monkeypatch.setattr(fingerprint, "tree_hash", lambda path: "edited" if path.name == "inference.py" else hashed(path))
    assert name() != first


def test_the_command_adds_what_params_yaml_leaves_to_its_default() -> None:
    from stages.tune import apply

    raw = {"train": {"lr": 1}, "methods": {"ecrf": {"crf": {"name": "embedded"}}}}
    values = {"train.lr": 1e-05, "methods.ecrf.crf.normalization": "count", "methods.ecrf.head.rates": [1, 2]}
    assert apply(raw, values) == (
        "uv run dvc exp run -S train.lr=1e-05 -S +methods.ecrf.crf.normalization=count -S '+methods.ecrf.head.rates=[1, 2]'"
    )


def test_the_importance_is_that_of_the_parameter_that_counts(tmp_path: Path) -> None:
    space = {"train.lr": Range(low=0.01, high=1.0, log=True), "superpixels.slic.segments": Range(low=10, high=90, whole=True)}
    wide = Search(run="ecrf", space=space, algorithm="random", trials=30)
    made = known(wide, 30, lambda values: None if values["superpixels.slic.segments"] > 80 else values["superpixels.slic.segments"] / 100)
    steps, shares = pictures.shares_of(wide, made)
    assert steps == 10
    assert shares["superpixels.slic.segments"] > 0.9
    assert abs(sum(shares.values()) - 1) < 1e-6
    assert pictures.shares_of(wide, made[:2]) == (10, {})
    drawn = pictures.draw(wide, made, tmp_path)
    assert [path.name for path in drawn] == ["parallel.png", "importance.png", "miou-train.lr.png", "miou-superpixels.slic.segments.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
        assert path.with_name(f"{path.stem}.svg").read_text().rstrip().endswith("</svg>")
    only_failed = [outcome(0, "failed"), outcome(1, "failed")]
    pictures.draw(replace(wide, space={"train.lr": Range(low=0, high=2)}), only_failed, tmp_path / "failed")


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


def test_what_a_trial_gets(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import room as rooms

    monkeypatch.setattr(rooms, "cores", lambda: 8)
    monkeypatch.setattr(rooms, "devices", lambda: 0)
    local = Launch(name="mine", backend="local", processes=2)
    found = rooms.room(local, replace(WIDE, concurrent=2))
    assert (found.cpus, found.gpus, found.launch.threads) == (4.0, 0, 2)
    assert rooms.room(local, replace(WIDE, concurrent=16)).cpus == 0.5
    monkeypatch.setattr(rooms, "devices", lambda: 4)
    assert rooms.room(local, replace(WIDE, concurrent=2)).gpus == 2
    with pytest.raises(UserError, match=r"3 trials at once of 2 process\(es\) each need 6 GPUs, and this machine has 4"):
        rooms.room(local, replace(WIDE, concurrent=3))
    ray = Launch(name="ray", backend="ray", processes=8, ray=Ray(address="auto", cpus=6, gpus=1))
    found = rooms.room(ray, WIDE)
    assert (found.cpus, found.gpus, found.launch.threads, found.options.address) == (48.0, 8, 6, "auto")
    for launch, words in (
        (replace(ray, nodes=2), "one node"),
        (replace(ray, ray=Ray(elastic=(1, 2))), "fixed number"),
        (Launch(name="slurm", backend="slurm", slurm=Slurm()), "not in Slurm's queue"),
    ):
        with pytest.raises(UserError, match=words):
            rooms.room(launch, WIDE)

    nodes = [{"NodeManagerHostname": f"n{number}", "Alive": True, "Resources": {"CPU": 64.0, "GPU": 4.0}} for number in (0, 1)]
    with pytest.raises(UserError, match=r"48 CPU\(s\) and 8 GPU\(s\) on one node, and no node .*n1: 64 CPUs, 4 GPUs"):
        rooms.refuse_impossible(found, WIDE, nodes)
    rooms.refuse_impossible(replace(found, gpus=4), WIDE, nodes)


def make_set(folder: Path, barrier: Any, count: Any) -> None:
    """A process that makes a set of superpixels with others, and counts what it computes itself."""
    os.chdir(folder)
    pairs, original = prepared.read().splits["train"], sets.label_map

    def counted(*arguments: Any) -> Any:
        with count.get_lock():
            count.value += 1
        return original(*arguments)

    sets.label_map = counted
    barrier.wait()
    for pair in pairs:
        sets.ensure(pair, SuperpixelSet(algorithm="slic", segments=9))


def test_trials_at_the_same_time_compute_a_set_once(project: Project) -> None:
    context = multiprocessing.get_context("fork")
    barrier, count = context.Barrier(3), context.Value("i", 0)
    together = [context.Process(target=make_set, args=(project.folder, barrier, count)) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join()
        assert process.exitcode == 0
    assert count.value == len(prepared.read().splits["train"])
