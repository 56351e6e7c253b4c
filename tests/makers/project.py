"""A tiny project on the disk, and its stages as a user runs them."""

import copy
import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.runs import fingerprint
from pipeline.settings import config
from pipeline.settings.schema import Config

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
        context.set_forkserver_preload(["timm", "pipeline.runs.trainer", "pipeline.evaluation.evaluate"])
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
