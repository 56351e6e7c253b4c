"""KSAC's convolutions of five rates with one kernel against a dilated convolution for each, and against ASPP's three."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, Work
from models.heads.ksac import shared_atrous_conv

BATCH, WIDTH, SIZE = 2, 256, 33  # a crop of 513 at stride 16
RATES, ASPP_RATES = (1, 6, 12, 18, 24), (6, 12, 18)


def convolutions(channels: int, device: torch.device) -> Mapping[str, Work]:
    """Forward and backward of the convolutions alone."""
    x_BCHW = torch.randn(BATCH, channels, SIZE, SIZE, device=device, requires_grad=True)
    weight_OC33 = torch.randn(WIDTH, channels, 3, 3, device=device, requires_grad=True)
    weights = [torch.randn_like(weight_OC33, requires_grad=True) for _ in ASPP_RATES]
    cotangents = [torch.randn(BATCH, WIDTH, SIZE, SIZE, device=device) for _ in RATES]

    def step(outputs: list[Tensor], parameters: list[Tensor]) -> object:
        return torch.autograd.grad(outputs, [x_BCHW, *parameters], cotangents[: len(outputs)])

    return {
        "ours": lambda: step(shared_atrous_conv(x_BCHW, weight_OC33, RATES), [weight_OC33]),
        "a convolution for each rate": lambda: step([dilated(x_BCHW, weight_OC33, rate) for rate in RATES], [weight_OC33]),
        "ASPP's three, not shared": lambda: step([dilated(x_BCHW, *pair) for pair in zip(weights, ASPP_RATES, strict=True)], weights),
    }


def dilated(x_BCHW: Tensor, weight_OC33: Tensor, rate: int) -> Tensor:
    """What the paper's algorithm calls."""
    return F.conv2d(x_BCHW, weight_OC33, padding=rate, dilation=rate)


TARGET = "five 2.5 times ours, ASPP's three not below"
CASES = tuple(
    Case(f"KSAC, 5 rates, {BATCH} x {channels} x {SIZE} x {SIZE} to {WIDTH}", TARGET, lambda device, c=channels: convolutions(c, device))
    for channels in (1024, 2048)
)
