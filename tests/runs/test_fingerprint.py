"""dvc.yaml and the fingerprint agree on what a training depends on."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.ground import store
from pipeline.runs import fingerprint
from pipeline.settings import config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("stage", "kind"), [("train", "methods"), ("finetune", "finetunes")])
def test_the_code_that_dvc_watches_is_what_the_fingerprint_hashes(stage: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH", raising=False)
    chosen = config.load(ROOT / "params.yaml").methods["ecrf"]
    values = {"item.superpixels": chosen.superpixels, "item.from": "runs/parent/weights"}
    values |= {f"item.{slot}.name": getattr(chosen, slot).name for slot in ("head", "crf", "loss")}
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["deps"]
    watched = {re.sub(r"\$\{([\w.]+)\}", lambda match: values[match[1]], dep) for dep in deps}
    code = set(fingerprint.code_files(chosen))
    data = {store.PREPARED.as_posix(), store.manifest_of(chosen.superpixels).as_posix()}
    parent = {"runs/parent/weights"} if stage == "finetune" else set()
    assert watched == code | data | parent
    assert all((ROOT / path).exists() for path in code)


def test_no_shared_file_of_the_models_is_forgotten() -> None:
    """models/kernels/flops.py only counts; heads, crf and losses are watched by the part that a run names."""
    shared = {path.relative_to(ROOT).as_posix() for path in (ROOT / "models").glob("*.py")} - {
        "models/__init__.py",
        "models/kernels/flops.py",
    }
    assert shared | {"models/filters", "models/kernels"} <= set(fingerprint.CODE)


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
