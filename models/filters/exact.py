"""The exact Gaussian filter over points of any features, in memory that grows with the points alone.

    out_i = sum over j of exp(-|f_i - f_j|^2 / 2) v_j          (j = i included, not normalised)

Points farther apart than sqrt(2 ln(N / tolerance)) add up to less than `tolerance` of the largest value, so that tiles of them are
skipped (models/kernels/tiles.py). For each remaining pair of tiles the kernel is made once and used in both directions, as matrix
products. Squares are expanded about the tiles' centres, not about the image's: the half squares are then a few units instead of 3600
and float32 keeps its precision; in float64 for the pairs of wide tiles and for a tile with itself.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.kernels import use_triton
from models.kernels.precision import full_precision
from models.kernels.tiles import Tiles, build
from models.parts.layers import at_least_float32

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}  # kernel values held at once
TO_BASE_2 = math.sqrt(math.log2(math.e))  # exp(-x^2 / 2) = 2^(-(TO_BASE_2 x)^2 / 2), and exp2 is the faster of the two


class Exact:
    """The filter of a batch of point sets; built once, then called for every set of values."""

    def __init__(self, features_BDN: Tensor, *, tolerance: float | None = None) -> None:
        """tolerance: the most that skipped points may add up to, for values up to 1; 0 skips none, None takes 8 units of rounding."""
        self.features_BDN = at_least_float32(features_BDN)
        if tolerance is None:
            tolerance = 8 * torch.finfo(self.features_BDN.dtype).eps
        if tolerance < 0:
            raise ValueError(f"filter exact: tolerance must not be negative, not {tolerance}")
        count = max(features_BDN.shape[2], 1)
        reach = math.sqrt(2 * math.log(max(count / tolerance, 1.0))) if tolerance else math.inf
        self.tiles = build(TO_BASE_2 * self.features_BDN.detach(), TO_BASE_2 * reach)

    @torch.compiler.disable
    def __call__(self, values_BVN: Tensor) -> Tensor:
        """The filtered values BVN, of the features' type; differentiable in values and features."""
        return _Filter.apply(self.features_BDN, values_BVN.to(self.features_BDN.dtype), self.tiles)


class _Filter(Function):
    """Kernel values are computed again wherever they are needed, and never kept."""

    @staticmethod
    def forward(ctx: Any, features_BDN: Tensor, values_BVN: Tensor, tiles: Tiles) -> Tensor:
        ctx.save_for_backward(values_BVN)
        ctx.tiles = tiles
        values_TVn = tiles.gather(values_BVN)
        with full_precision(values_BVN.device):
            return tiles.scatter(_filtered(tiles, values_TVn))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        tiles, gradient_TVn = ctx.tiles, ctx.tiles.gather(gradients[0])
        with full_precision(gradient_TVn.device):
            if not ctx.needs_input_grad[0]:
                return None, tiles.scatter(_filtered(tiles, gradient_TVn)), None
            values_TVn = tiles.gather(*ctx.saved_tensors)
            to_values_TVn, to_features_TDn = _gradients(tiles, values_TVn, gradient_TVn)
            return tiles.scatter(to_features_TDn), tiles.scatter(to_values_TVn), None


def _filtered(tiles: Tiles, values_TVn: Tensor) -> Tensor:
    if _has_kernel(values_TVn):
        from models.kernels import gaussian

        return gaussian.filtered(tiles, values_TVn)
    total_TVn = torch.zeros_like(values_TVn)
    for first_P, second_P, mirrored, kernel_Pnn, _, _ in _blocks(tiles):
        total_TVn.index_add_(0, first_P, torch.bmm(values_TVn.index_select(0, second_P), kernel_Pnn.mT))
        if mirrored:
            total_TVn.index_add_(0, second_P, torch.bmm(values_TVn.index_select(0, first_P), kernel_Pnn))
    return total_TVn


def _gradients(tiles: Tiles, values_TVn: Tensor, gradient_TVn: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients to the values, and to the features: sum over j of K_ij (g_i . v_j + g_j . v_i) (f_j - f_i)."""
    if _has_kernel(values_TVn):
        from models.kernels import gaussian

        to_features_TDn = gaussian.pulls(tiles, values_TVn, gradient_TVn) / TO_BASE_2
        return gaussian.filtered(tiles, gradient_TVn), to_features_TDn
    both_T2Vn, crossed_T2Vn = torch.cat([gradient_TVn, values_TVn], 1), torch.cat([values_TVn, gradient_TVn], 1)
    to_values_TVn, to_features_TDn = torch.zeros_like(values_TVn), torch.zeros_like(tiles.offsets_TDn)
    for first_P, second_P, mirrored, kernel_Pnn, x_PEn, y_PEn in _blocks(tiles):
        to_values_TVn.index_add_(0, first_P, torch.bmm(gradient_TVn[second_P], kernel_Pnn.mT))
        if mirrored:
            to_values_TVn.index_add_(0, second_P, torch.bmm(gradient_TVn[first_P], kernel_Pnn))
        kernel_Pnn *= torch.bmm(both_T2Vn[first_P].mT, crossed_T2Vn[second_P])
        to_features_TDn.index_add_(0, first_P, _pull(y_PEn, x_PEn, kernel_Pnn.mT))
        if mirrored:
            to_features_TDn.index_add_(0, second_P, _pull(x_PEn, y_PEn, kernel_Pnn))
    return to_values_TVn, to_features_TDn / TO_BASE_2


def _has_kernel(values_TVn: Tensor) -> bool:
    return values_TVn.dtype == torch.float32 and use_triton(values_TVn)


def _pull(from_PDn: Tensor, to_PDn: Tensor, weights_Pnn: Tensor) -> Tensor:
    """The sum over the points of `from` of weight * (from - to), of the weights' type."""
    precise_Pnn = weights_Pnn.to(from_PDn.dtype)
    return (torch.bmm(from_PDn, precise_Pnn) - to_PDn * precise_Pnn.sum(1, keepdim=True)).to(weights_Pnn.dtype)


def _blocks(tiles: Tiles) -> Iterator[tuple[Tensor, Tensor, bool, Tensor, Tensor, Tensor]]:
    """(first_P, second_P, mirrored, kernel_Pnn, x_PDn, y_PDn): both tiles' points relative to the first one's centre."""
    chunk = max(1, CHUNK.get(tiles.centres_TD.device.type, CHUNK["cuda"]) // max(1, tiles.offsets_TDn.shape[2] ** 2))
    for group in tiles.groups:
        precise = torch.float64 if group.wide else tiles.offsets_TDn.dtype
        for first_P, second_P in zip(group.first_P.split(chunk), group.second_P.split(chunk), strict=True):
            shifts_PD = tiles.centres_TD[second_P] - tiles.centres_TD[first_P]
            x_PDn = tiles.offsets_TDn.index_select(0, first_P).to(precise)
            y_PDn = tiles.offsets_TDn.index_select(0, second_P).to(precise) + shifts_PD.to(precise)[..., None]
            yield first_P, second_P, group.mirrored, _exponents(x_PDn, y_PDn).to(tiles.offsets_TDn.dtype).exp2_(), x_PDn, y_PDn


def _exponents(x_PDn: Tensor, y_PDn: Tensor) -> Tensor:
    """The kernel's logarithm to base 2, x . y - |x|^2 / 2 - |y|^2 / 2, by one matrix product."""
    ones_P1n = torch.ones_like(x_PDn[:, :1])
    left_PEn = torch.cat([x_PDn, ones_P1n, -0.5 * x_PDn.square().sum(1, keepdim=True)], 1)
    right_PEn = torch.cat([y_PDn, -0.5 * y_PDn.square().sum(1, keepdim=True), ones_P1n], 1)
    return torch.bmm(left_PEn.mT, right_PEn)
