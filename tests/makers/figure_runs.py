"""Runs that figures are made of, with weights as they are drawn."""

from pathlib import Path
from typing import Any

import torch
from makers.project import Project

from models.segmenter import build
from pipeline.data import prepared
from pipeline.figures.material import Run, Shot, load_run, load_shot
from pipeline.ground import files
from pipeline.training.checkpoint import weights_payload

PLAIN: dict[str, Any] = {"crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "none"}
DEEPLAB = {"name": "deeplab", "width": 16, "rates": [1, 2]}
METHODS: dict[str, dict[str, Any]] = {
    "deeplab": {**PLAIN, "head": DEEPLAB},
    "ecrf": {**PLAIN, "head": DEEPLAB, "crf": {"name": "embedded"}, "superpixels": "slic"},
    "joint_crf": {**PLAIN, "head": DEEPLAB, "crf": {"name": "mean_field", "iterations": 2}},
    "conv_crf": {**PLAIN, "head": DEEPLAB, "crf": {"name": "conv", "filter_size": 3}},
    "ksac": {**PLAIN, "head": {"name": "ksac", "width": 8, "rates": [1, 3, 5]}},
    "caa": {**PLAIN, "head": {"name": "caa", "width": 8, "key_width": 4, "output_width": 8}},
    "car": {**PLAIN, "head": DEEPLAB, "loss": {"name": "car"}, "projection": "linear"},
    "decoupled": {**PLAIN, "head": {"name": "decoupled", "width": 16, "rates": [1, 2]}, "loss": {"name": "body_edge"}},
}


def save_weights(project: Project, name: str) -> None:
    stamped = project.config(name)
    classes = prepared.read().classes
    torch.manual_seed(0)
    state = build(stamped, len(classes)).state_dict()
    for key, tensor in state.items():
        if key.endswith(("running_mean", "compatibility")):
            state[key] = torch.randn_like(tensor)
    with files.replacing(Path(f"runs/{name}/weights/seed-0.pt")) as file:
        torch.save(weights_payload(stamped, classes, "0" * 16, state), file)


def run_of(name: str) -> Run:
    return load_run(name, None, prepared.read())


def shot_of(pixel: tuple[int, int] | None = (20, 30)) -> Shot:
    return load_shot(prepared.read().splits["val"][0], pixel, None)
