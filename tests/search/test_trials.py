"""A trial is trained in turns, killed and scored, in the room and with the data that it has."""

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.project import Project
from makers.searches import WIDE, declared

from models.heads.deeplab import DeepLab
from pipeline.data import prepared
from pipeline.evaluation import evaluate as evaluation
from pipeline.ground.errors import UserError
from pipeline.runs import folders as runs
from pipeline.search import trial
from pipeline.search.trial import Trial
from pipeline.settings import config as configs
from pipeline.settings.profiles import Launch, Ray, Slurm
from pipeline.settings.schema import SuperpixelSet
from pipeline.superpixels import sets


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
        if work is evaluation.evaluate:
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
        assert runs.is_finished(config)
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
