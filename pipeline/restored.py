"""A network from a published weights file."""

from dataclasses import replace
from pathlib import Path

import torch

from models.backbone import normalization
from models.segmenter import build
from pipeline.checkpoint import Weights
from pipeline.errors import UserError
from pipeline.inference import Network


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
