"""The Gaussian filter on an image's own grid, which is separable: one matrix for the rows, one for the columns."""

import torch
from torch import Tensor

from models.filters.precision import product


class Spatial:
    """Filters over pixel positions (y / theta, x / theta) of a height x width map; exact, with a gradient to theta."""

    def __init__(self, height: int, width: int, theta: Tensor | float, like: Tensor) -> None:
        """theta: the standard deviation in pixels, a number or a tensor of one; like: a tensor of the values' type and device."""
        self.size = height, width
        self.rows_HH, self.columns_WW = (_gaussian(length, theta, like) for length in self.size)

    def __call__(self, values_BVN: Tensor) -> Tensor:
        """The sum over j of exp(-|f_i - f_j|^2 / 2) v_j, itself included, not normalised; N = height * width, row by row."""
        values_BVHW = values_BVN.unflatten(-1, self.size)
        return product(self.rows_HH, product(values_BVHW, self.columns_WW)).flatten(-2)


def _gaussian(length: int, theta: Tensor | float, like: Tensor) -> Tensor:
    places_N = torch.arange(length, device=like.device, dtype=like.dtype)
    if isinstance(theta, Tensor):
        theta = theta.to(like)
    return torch.exp(-0.5 * ((places_N[:, None] - places_N) / theta).square())
