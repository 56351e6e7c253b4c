"""The Gaussian filter on an image's own grid, which is separable: one matrix for the rows, one for the columns.

Beyond nine standard deviations a kernel is below 3e-18, so that a known bandwidth needs a band of each matrix only: it is multiplied in
blocks of 64 rows. A bandwidth that learns takes the whole matrix.
"""

import math

import torch
from torch import Tensor

from models.kernels.precision import product

REACH = 9.0  # standard deviations
BLOCK = 64


class Spatial:
    """Filters over pixel positions (y / theta, x / theta) of a height x width map; exact, with a gradient to theta."""

    def __init__(self, height: int, width: int, theta: Tensor | float, like: Tensor) -> None:
        """theta: the standard deviation in pixels, a number or a tensor of one; like: a tensor of the values' type and device."""
        self.size = height, width
        self.rows_HH, self.columns_WW = (_gaussian(length, theta, like) for length in self.size)
        reach = math.inf if isinstance(theta, Tensor) else REACH * theta
        self.row_blocks, self.column_blocks = (_blocks(length, reach) for length in self.size)

    def __call__(self, values_BVN: Tensor) -> Tensor:
        """The sum over j of exp(-|f_i - f_j|^2 / 2) v_j, itself included, not normalised; N = height * width, row by row."""
        x_BVHW = values_BVN.unflatten(-1, self.size)
        x_BVHW = _joined([product(x_BVHW[..., near], self.columns_WW[near, own]) for own, near in self.column_blocks], -1)
        x_BVHW = _joined([product(self.rows_HH[own, near], x_BVHW[..., near, :]) for own, near in self.row_blocks], -2)
        return x_BVHW.flatten(-2)


def _blocks(length: int, reach: float) -> list[tuple[slice, slice]]:
    """Blocks of places, each with the places that reach it; one of all where that is no more work."""
    size = max(BLOCK, 2 * math.ceil(min(reach, length)))
    if length <= size + 2 * reach:
        return [(slice(0, length), slice(0, length))]
    margin = math.ceil(reach)
    return [
        (slice(start, min(start + size, length)), slice(max(0, start - margin), min(start + size + margin, length)))
        for start in range(0, length, size)
    ]


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _gaussian(length: int, theta: Tensor | float, like: Tensor) -> Tensor:
    places_N = torch.arange(length, device=like.device, dtype=like.dtype)
    if isinstance(theta, Tensor):
        theta = theta.to(like)
    return torch.exp(-0.5 * ((places_N[:, None] - places_N) / theta).square())
