"""dvc.yaml and the fingerprint agree on what a training depends on."""

import re
from dataclasses import replace
from pathlib import Path

import grimp
import pytest
import yaml

from pipeline.ground import store
from pipeline.runs import fingerprint
from pipeline.settings import config
from pipeline.settings.schema import Finetune

ROOT = Path(__file__).parents[2]
PACKAGES = {"models", "pipeline"}


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_the_code_that_dvc_watches_is_what_the_fingerprint_hashes(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH", raising=False)
    chosen = config.load(ROOT / "params.yaml").methods["ecrf"]
    if stage == "finetune":
        chosen = replace(chosen, finetune=Finetune(source=Path("runs/parent/weights")))
    values = {"item.superpixels": chosen.superpixels, "item.from": "runs/parent/weights"}
    values |= {f"item.{slot}.name": getattr(chosen, slot).name for slot in ("head", "crf", "loss")}
    watched = {re.sub(r"\$\{([\w.]+)\}", lambda match: values[match[1]], dep) for dep in dependencies(stage)}
    code = set(fingerprint.code_files(chosen))
    data = {store.PREPARED.as_posix(), store.manifest_of(chosen.superpixels).as_posix()}
    parent = {"runs/parent/weights"} if stage == "finetune" else set()
    assert watched == code | data | parent
    assert all((ROOT / path).exists() for path in code)


# What no result depends on: files and locks, params.yaml (whose values are watched, not its reading), MLflow, how a run goes on.
FREE = {"pipeline.ground", "pipeline.settings", "pipeline.tracking", "pipeline.runs"}
# Operations that are counted, and how options are read: neither changes a number.
COUNTED = {"models.flops", "models.options"}
# What an evaluation takes from its weights: an edit of these makes other weights.
OF_WEIGHTS = {"models", "pipeline.training"}


@pytest.mark.parametrize(
    ("stage", "module", "free"),
    [
        ("prepare", "pipeline.preparation.pairs", FREE | {"pipeline.download"}),  # the archives' manifest is watched
        ("superpixels", "pipeline.superpixels.sets", FREE | {"pipeline.data"}),  # maps are known by the images' bytes
        ("train", "pipeline.training.loop", FREE | COUNTED),
        ("finetune", "pipeline.training.loop", FREE | COUNTED),
        ("evaluate", "pipeline.evaluation.evaluate", FREE | OF_WEIGHTS),
        ("report", "pipeline.report.write", FREE),
        ("figures", "pipeline.figures.write", FREE | OF_WEIGHTS | {"pipeline.report"}),  # of which it takes how Markdown is written
    ],
)
def test_what_a_stage_imports_is_watched(stage: str, module: str, free: set[str]) -> None:
    """A file that is added to a room needs no line anywhere, and one that is imported from elsewhere is noticed here."""
    watched = {path.removesuffix(".py").replace("/", ".") for path in dependencies(stage)}
    for slot in ("heads", "crf", "losses"):  # by the part that a run names, and by none for their tables
        watched |= {f"models.{slot}"} if any(path.startswith(f"models.{slot}.$") for path in watched) else set()
    graph = grimp.build_graph("models", "pipeline")
    imported = {module, *graph.find_upstream_modules(module)} - PACKAGES
    unwatched = {name for name in imported if not any(name == part or name.startswith(f"{part}.") for part in watched | free)}
    assert not unwatched


def dependencies(stage: str) -> list[str]:
    """A stage's dependencies as dvc.yaml has them."""
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    return entry.get("do", entry)["deps"]


@pytest.mark.parametrize(("stage", "kind"), [("train", "methods"), ("finetune", "finetunes")])
def test_the_parameters_that_dvc_watches_are_what_a_run_is_resolved_from(stage: str, kind: str) -> None:
    params = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["params"]
    assert set(params) == {"data", "backbone", "auxiliary", "train", f"{kind}.${{key}}"}


def test_differences_are_phrases() -> None:
    old = {"train": {"lr": 1, "steps": 2}, "inputs": {"code": {"a.py": "x"}}}
    new = {"train": {"lr": 3, "steps": 2}, "inputs": {"code": {"a.py": "y"}}}
    assert fingerprint.differences(old, new) == ["code.a.py changed", "train.lr 1 -> 3"]
    assert fingerprint.same_but_code(old, {**old, "inputs": {"code": {"a.py": "y"}}})
    assert not fingerprint.same_but_code(old, new)
