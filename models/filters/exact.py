"""The exact Gaussian filter over points of any features, in memory that grows with the points alone.

out_i = sum over j of exp(-|f_i - f_j|^2 / 2) v_j          (j = i included, not normalised)
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.filters.precision import full_precision

CHUNK = 1 << 20  # kernel values that are held at once


class Exact:
    """The filter of a batch of point sets; built once, then called for every set of values."""

    def __init__(self, features_BDN: Tensor, *, tolerance: float = 0.0) -> None:
        self.features_BDN = features_BDN

    @torch.compiler.disable
    def __call__(self, values_BVN: Tensor) -> Tensor:
        """The filtered values BVN, of the features' type; differentiable in values and features."""
        return _Filter.apply(self.features_BDN, values_BVN)


class _Filter(Function):
    """Kernel values are computed again wherever they are needed, and never kept."""

    @staticmethod
    def forward(ctx: Any, features_BDN: Tensor, values_BVN: Tensor) -> Tensor:
        ctx.save_for_backward(features_BDN, values_BVN)
        out_BVN = torch.empty_like(values_BVN)
        with full_precision(values_BVN.device):
            for image, columns in _chunks(features_BDN):
                kernel_NM = torch.exp(-0.5 * _squares(features_BDN[image], columns))
                out_BVN[image, :, columns] = values_BVN[image] @ kernel_NM
        return out_BVN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyrefly: ignore[bad-override]
        features_BDN, values_BVN = ctx.saved_tensors
        gradient_BVN = gradients[0]
        to_values = _Filter.apply(features_BDN, gradient_BVN) if ctx.needs_input_grad[1] else None
        to_features = torch.zeros_like(features_BDN) if ctx.needs_input_grad[0] else None
        if to_features is not None:
            with full_precision(values_BVN.device):
                for image, columns in _chunks(features_BDN):
                    f_DN, v_VN, g_VN = features_BDN[image], values_BVN[image], gradient_BVN[image]
                    weights_NM = torch.exp(-0.5 * _squares(f_DN, columns))
                    weights_NM *= v_VN.T @ g_VN[:, columns] + g_VN.T @ v_VN[:, columns]
                    for d in range(len(f_DN)):
                        to_features[image, d, columns] = ((f_DN[d, :, None] - f_DN[d, columns]) * weights_NM).sum(0)
        return to_features, to_values


def _chunks(features_BDN: Tensor) -> list[tuple[int, slice]]:
    batch, _, count = features_BDN.shape
    size = max(1, CHUNK // max(count, 1))
    return [(image, slice(start, start + size)) for image in range(batch) for start in range(0, count, size)]


def _squares(features_DN: Tensor, columns: slice) -> Tensor:
    """|f_i - f_j|^2, subtracted first: expanded squares of 3600 would cancel badly in float32."""
    total_NM = torch.zeros((), dtype=features_DN.dtype, device=features_DN.device)
    for f_N in features_DN:
        total_NM = total_NM + (f_N[:, None] - f_N[columns]).square()
    return total_NM
