"""What several test files share."""

import copy
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import config, fingerprint
from pipeline.schema import Config


@pytest.fixture
def shared() -> Path:
    """A folder with real data and reference material (`SHARED_DATA`, else ../shared); skips where there is none."""
    folder = Path(os.environ.get("SHARED_DATA") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} does not exist (set SHARED_DATA)")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one, with a store of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATA_STORE", "DATA_ARCHIVES", "LAUNCH", "RESUME_ACROSS_CODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def disk(workspace: Path) -> Iterator[Path]:
    """A disk of its own; skips where none can be mounted."""
    folder = workspace / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


TINY: dict[str, Any] = {
    "data": {
        "dataset": "scenes", "root": "pipeline/datasets/scenes.py", "crop": [32, 48], "scale": [0.75, 1.5], "ratio_base": None,
        "jitter": None, "train_images": 10, "val_images": 4, "height": 48, "width": 64, "seed": 0,
    },
    "superpixels": {"none": {}, "slic": {"algorithm": "slic", "segments": 30, "compactness": 10, "sigma": 0}},
    "backbone": {"name": "test_resnet", "output_stride": 16, "pretrained": False},
    "auxiliary": {"stage": -2, "width": 16, "kernel": 3, "weight": 0.4},
    "train": {
        "iterations": 12, "batch_size": 4, "seeds": [0], "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005,
        "warmup": 2, "clip": 10.0,
    },
    "methods": {
        "fcn": {"head": {"name": "fcn", "width": 16}, "crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "none"},
        "ecrf": {
            "head": {"name": "deeplab", "width": 16, "rates": [1, 2]}, "crf": {"name": "embedded"}, "loss": {"name": "cross_entropy"},
            "superpixels": "slic",
        },
    },
    "finetunes": {},
    "evaluate": {"split": "val", "mode": "whole", "scales": [0.75, 1.0], "flip": True, "radii": [1, 3]},
    "evaluations": {"fcn": {"of": "fcn"}, "ecrf": {"of": "ecrf"}},
    "figures": {"images": 1, "sample": 4},
    "launch": "profile.yaml",
}  # fmt: skip
PROFILE = {
    "backend": "local",
    "processes": 1,
    "threads": 1,
    "workers": 0,
    "save_every": 4,
    "log_every": 2,
    "bars": False,
    "tracking": False,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU are skipped, and say so, where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@dataclass
class Project:
    """A folder with a tiny params.yaml whose data is prepared; stages run in it as they do for a user."""

    folder: Path
    params: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(TINY))
    profile: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(PROFILE))

    def write(self) -> None:
        """Put params.yaml and the launch profile on the disk as they now are."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))
        (self.folder / "profile.yaml").write_text(yaml.safe_dump(self.profile))

    def stage(self, name: str, *arguments: str) -> int:
        """Run a stage in this process; returns its exit status."""
        self.write()
        return stage_main(self.folder, name, arguments)

    def start(self, name: str, *arguments: str) -> multiprocessing.process.BaseProcess:
        """Start a stage as a process of its own, forked from a server that has torch imported."""
        self.write()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["timm", "pipeline.trainer", "pipeline.evaluation"])
        process = context.Process(target=stage_process, args=(self.folder, name, arguments, dict(os.environ)))
        process.start()
        return process

    def config(self, method: str, seed: int = 0) -> Config:
        """The stamped config of a method's or finetune's seed, as the stage would make it."""
        self.write()
        params = config.load(self.folder / "params.yaml")
        return fingerprint.stamp(config.with_seed({**params.methods, **params.finetunes}[method], seed))


def stage_main(folder: Path, name: str, arguments: Sequence[str]) -> int:
    """What `python -m stages.<name> <arguments>` does in `folder`."""
    from stages.command import run

    main = importlib.import_module(f"stages.{name}").main
    before, sys.argv = (Path.cwd(), sys.argv), [f"stages.{name}", *arguments]
    os.chdir(folder)
    try:
        return run(main)
    finally:
        os.chdir(before[0])
        sys.argv = before[1]


def stage_process(folder: Path, name: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """A stage in a process that leads a group of its own."""
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    raise SystemExit(stage_main(folder, name, arguments))


@pytest.fixture(scope="session")
def prepared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data prepared, to be copied."""
    project = Project(tmp_path_factory.mktemp("prepared"))
    for stage in (("download",), ("prepare",), ("superpixels", "none"), ("superpixels", "slic")):
        assert project.stage(*stage) == 0
    return project.folder


@pytest.fixture
def project(prepared_project: Path, workspace: Path) -> Project:
    """A prepared tiny project as the current folder."""
    shutil.copytree(prepared_project, workspace, dirs_exist_ok=True)
    project = Project(workspace)
    project.write()
    return project


@pytest.fixture(scope="session")
def trained(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with both methods trained for four steps, and evaluated: to be predicted and exported from, not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared_project, folder, dirs_exist_ok=True)
    project = Project(folder)
    project.params["train"]["iterations"] = 4
    for name in project.params["methods"]:
        assert project.stage("train", name) == 0
        assert project.stage("evaluate", name) == 0
    return folder


@pytest.fixture(scope="session")
def two_processes(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny project that two processes of this machine, of one thread each, have trained: what every launcher must give, bit for bit."""
    folder = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(prepared_project, folder)
    project = Project(folder)
    project.profile["processes"] = 2
    assert project.stage("train", "fcn") == 0
    return project
