"""A network from a published weights file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from models.backbones.backbone import normalization
from models.segmenter import build
from pipeline.data.prepared import Prepared
from pipeline.evaluation.windows import Network
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.training.checkpoint import Weights


def restored(weights: Weights, path: Path, device: torch.device, remedy: str) -> Network:
    """The network of `weights`, which were read from `path`, in eval mode; UserError, ending with `remedy`, where they do not fit it."""
    untrained = replace(weights.config, backbone=replace(weights.config.backbone, pretrained=False))
    try:
        model = build(untrained, len(weights.classes))
        model.load_state_dict(weights.state)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} does not fit the network as models/ has it now ({reason[:200]}): {remedy}") from None
    mean_colour, _ = normalization(weights.config.backbone.name)
    return Network(model.to(device).eval(), tuple(mean_colour))


def check_belongs(weights: Weights, path: Path, prepared: Prepared, again: str) -> None:
    """Refuse weights, read from `path`, that were trained on other classes or superpixels than the prepared data has now.

    Raises UserError, which ends with `again` where training again is the way out.
    """
    if weights.classes != prepared.classes:
        difference = f"({listed(weights.classes)}) than {prepared.dataset} ({listed(prepared.classes)})"
        raise UserError(f"{path} has other classes {difference}: {again}")
    if weights.config.superpixel_set is None:
        return
    manifest = store.manifest_of(weights.superpixels["set"])
    if not manifest.is_file():
        remedy = f"run `uv run dvc repro superpixels@{manifest.stem}`"
        raise UserError(f"{manifest}, which {path} was trained with, does not exist: {remedy}")
    if files.sha256(manifest) != weights.superpixels["sha256"]:
        raise UserError(f"{path} was trained with other superpixels than {manifest} has now: {again}")


def listed(names: Sequence[str]) -> str:
    """A few names for a message."""
    return ", ".join(names[:6]) + (f" ... {len(names)} in all" if len(names) > 6 else "")
