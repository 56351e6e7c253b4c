"""What params.yaml declares as a search: what is read, refused and named, and how a result is put into it."""

from pathlib import Path
from typing import Any

import pytest
from makers.project import Project
from makers.searches import declared

from pipeline.ground.errors import UserError
from pipeline.runs import fingerprint
from pipeline.search import space as search
from pipeline.search.trial import Trial
from pipeline.settings import config as configs
from stages.check import check


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
    monkeypatch.setattr(fingerprint, "tree_hash", lambda path: "edited" if path.name == "evaluation" else hashed(path))
    assert name() != first


def test_the_command_adds_what_params_yaml_leaves_to_its_default() -> None:
    from stages.tune import apply

    raw = {"train": {"lr": 1}, "methods": {"ecrf": {"crf": {"name": "embedded"}}}}
    values = {"train.lr": 1e-05, "methods.ecrf.crf.normalization": "count", "methods.ecrf.head.rates": [1, 2]}
    assert apply(raw, values) == (
        "uv run dvc exp run -S train.lr=1e-05 -S +methods.ecrf.crf.normalization=count -S '+methods.ecrf.head.rates=[1, 2]'"
    )
