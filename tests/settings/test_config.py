"""params.yaml is read strictly: each mistake is one line that names file, key and what is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.ground.errors import UserError
from pipeline.settings import config

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def write(workspace: Path) -> Callable[[Edit], Path]:
    """Writes the project's params.yaml after an edit."""

    def written(edit: Edit) -> Path:
        raw = yaml.safe_load((ROOT / "params.yaml").read_text())
        edit(raw)
        path = workspace / "params.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return path

    return written


def put(path: str, value: Any) -> Edit:
    *steps, last = path.split(".")

    def edit(raw: dict[str, Any]) -> None:
        for step in steps:
            raw = raw[step]
        raw[last] = value

    return edit


def drop(path: str) -> Edit:
    *steps, last = path.split(".")

    def edit(raw: dict[str, Any]) -> None:
        for step in steps:
            raw = raw[step]
        del raw[last]

    return edit


MISTAKES = {
    "unknown section": (put("trian", {}), ["trian is unknown", "did you mean train"]),
    "unknown key": (put("train.learning_rate", 1), ["train.learning_rate is unknown", "known:", "weight_decay"]),
    "unknown override": (
        put("methods.deeplab.train", {"iteration": 3}),
        ["methods.deeplab.train.iteration is unknown", "did you mean iterations"],
    ),
    "wrong type": (put("train.lr", "fast"), ["train.lr", "'fast'"]),
    "negative": (put("train.iterations", -1), ["train.iterations", "-1"]),
    "not a number": (put("train.lr", float("nan")), ["train.lr"]),
    "missing": (drop("train.iterations"), ["train.iterations is missing"]),
    "missing section": (drop("backbone"), ["backbone is missing"]),
    "unknown set": (put("methods.ecrf.superpixels", "slick"), ["methods.ecrf.superpixels", "'slick'", "did you mean slic"]),
    "part without name": (put("methods.deeplab.head", {"width": 3}), ["methods.deeplab.head", "name"]),
    "unknown run": (put("evaluations.ecrf.of", "ekrf"), ["evaluations.ecrf.of", "did you mean ecrf"]),
    "rate that grows": (put("train.min_lr", 1.0), ["train.min_lr 1.0 is larger than train.lr"]),
    "unknown jitter": (put("data.jitter", {"brightnes": 0.1}), ["data.jitter.brightnes is unknown", "did you mean brightness"]),
    "scale reversed": (put("data.scale", [2, 1]), ["data.scale"]),
    "slide without window": (put("evaluate.mode", "slide"), ["window"]),
    "no seeds": (put("train.seeds", []), ["train.seeds"]),
    "twice the same seed": (put("train.seeds", [1, 1]), ["twice"]),
    "batch does not divide": (put("train.accumulate", 3), ["batch_size 4", "does not divide", "3"]),
    "method that is a list": (put("methods.deeplab", [1]), ["methods.deeplab", "mapping"]),
    "name of a folder": (put("methods.../x", {}), ["methods"]),
    "unknown profile": (put("launch", "slrum"), ["'slrum'", "known: ", "local"]),
    "finetune without from": (put("finetunes.more", {"head": {"name": "fcn"}}), ["finetunes.more.from is missing"]),
    "finetune named as a method": (
        lambda raw: raw["finetunes"].update({"deeplab": {**raw["methods"]["deeplab"], "from": "runs/deeplab/weights"}}),
        ["deeplab is both a method and a finetune"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(mistake: str, write: Callable[[Edit], Path]) -> None:
    edit, words = MISTAKES[mistake]
    if mistake == "name of a folder":
        edit = lambda raw: raw["methods"].update({"../x": raw["methods"]["deeplab"]})  # noqa: E731
    with pytest.raises(UserError) as caught:
        config.load(write(edit))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_not_yaml_and_absent_are_one_line(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"params.yaml cannot be read: No such file"):
        config.load()
    Path("params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML") as caught:
        config.load()
    assert "\n" not in str(caught.value)


def test_overrides_are_merged_and_null_switches_off(write: Callable[[Edit], Path]) -> None:
    def edit(raw: dict[str, Any]) -> None:
        raw["methods"]["ecrf"].update(train={"lr": 0.5}, auxiliary=None, backbone={"output_stride": 8})
        raw["evaluations"]["ecrf"]["scales"] = [1.0]

    params = config.load(write(edit))
    ecrf, deeplab = params.methods["ecrf"], params.methods["deeplab"]
    assert (ecrf.train.lr, ecrf.train.iterations) == (0.5, deeplab.train.iterations)
    assert ecrf.auxiliary is None
    assert deeplab.auxiliary is not None
    assert (ecrf.backbone.output_stride, ecrf.backbone.name) == (8, deeplab.backbone.name)
    assert params.evaluations["ecrf"].scales == (1.0,)
    assert len(params.evaluations["deeplab"].scales) == 3


def test_a_config_survives_the_way_through_plain_values(write: Callable[[Edit], Path]) -> None:
    for chosen in config.load(write(lambda raw: None)).methods.values():
        assert config.from_dict(config.to_dict(chosen)) == chosen


def test_the_environment_names_the_profile(write: Callable[[Edit], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(lambda raw: None)
    Path("two.yaml").write_text("backend: local\nprocesses: 2\n")
    monkeypatch.setenv("LAUNCH", "two.yaml")
    assert config.load(path).methods["deeplab"].launch.processes == 2
    monkeypatch.setenv("LAUNCH", "nowhere")
    with pytest.raises(UserError, match="'nowhere'"):
        config.load(path)


@pytest.mark.parametrize("recipe", [*sorted(ROOT.glob("recipes/*.yaml")), ROOT / "params.yaml"], ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_models_build(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stages.check import check

    monkeypatch.delenv("LAUNCH", raising=False)
    check(config.load(recipe))
