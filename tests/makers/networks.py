"""Settings of small networks of every method, and images for them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 3
DEEPLAB = SimpleNamespace(name="deeplab", options={"width": 8, "rates": [1, 2], "low_level": 4})
DECOUPLED = SimpleNamespace(name="decoupled", options={"width": 8, "rates": [1, 2], "low_level": 4, "edge_width": 4})
UNARY = SimpleNamespace(name="unary", options={"dropout": 0.0})
OHEM = {"ohem_threshold": 0.3, "ohem_min_kept": 500}
BODY_EDGE = {"threshold": 0.3, "min_kept": 500, "edge_min_kept": 200, "edge_threshold": 0.5}
CAA = {"width": 8, "key_width": 4, "output_width": 8, "gate_width": 4}
CONV = {"dropout": 0.0, "iterations": 2, "filter_size": 3, "blur": 2, "compatibility": True, "stride": 4}
FIELD = {"dropout": 0.0, "iterations": 2, "learn_bandwidths": True}
METHODS = {
    "fcn": {"head": SimpleNamespace(name="fcn", options={"width": 8})},
    "psp": {"head": SimpleNamespace(name="psp", options={"width": 8})},
    "attention": {"head": SimpleNamespace(name="attention", options={"width": 8, "key_width": 4})},
    "caa": {"head": SimpleNamespace(name="caa", options=CAA)},
    "channelised": {"head": SimpleNamespace(name="caa", options=CAA | {"attention": "full"}), "projection": "linear"},
    "ksac": {"head": SimpleNamespace(name="ksac", options={"width": 8, "rates": [1, 2, 4], "low_level": 4})},
    "deeplab": {"head": DEEPLAB},
    "ecrf": {"head": DEEPLAB, "crf": SimpleNamespace(name="embedded", options={"dropout": 0.0, "embedding": 4})},
    "conv_crf": {"head": DEEPLAB, "crf": SimpleNamespace(name="conv", options=CONV)},
    "joint_crf": {"head": DEEPLAB, "crf": SimpleNamespace(name="mean_field", options=FIELD)},
    "linear": {"head": DEEPLAB, "projection": "linear"},
    "ohem": {"head": DEEPLAB, "loss": SimpleNamespace(name="cross_entropy", options=OHEM)},
    "car": {"head": DEEPLAB, "projection": "linear", "loss": SimpleNamespace(name="car", options={"intra_c2p": 2.0})},
    "decoupled": {"head": DECOUPLED, "loss": SimpleNamespace(name="body_edge", options=BODY_EDGE)},
    "segformer": {"head": SimpleNamespace(name="segformer", options={"width": 8})},
    "uper": {"head": SimpleNamespace(name="uper", options={"width": 8, "bins": [1, 2]})},
}


def settings(**changes: Any) -> SimpleNamespace:
    """What build and build_loss read of a config."""
    defaults = {
        "backbone": SimpleNamespace(name="resnet10t", output_stride=16, pretrained=False),
        "auxiliary": SimpleNamespace(stage=-2, width=8, kernel=3, weight=0.4),
        "crf": UNARY, "loss": SimpleNamespace(name="cross_entropy", options={}), "projection": "end",
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **changes})


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four images; nearly all that is ignored is in the second half, the second rank's."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 48, 64, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (4, 48, 64), generator=draw)
    labels[2:, 5:] = 255
    superpixels = torch.randint(-1, 9, (4, 12, 16), generator=draw).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return images, labels, superpixels


def smooth(batch: int, height: int, width: int) -> Tensor:
    coarse = torch.rand(batch, 3, height // 8 + 1, width // 8 + 1)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")
