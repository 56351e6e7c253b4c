"""The Gaussian filter on the permutohedral lattice: approximate, in time that grows with the points alone.

Adams, Baek and Davis: Fast High-Dimensional Filtering Using the Permutohedral Lattice (Eurographics 2010). The points are laid into
the hyperplane sum(x) = 0 of D + 1 dimensions, which simplices tile. A point gives its value to the D + 1 corners of its simplex by
barycentric weights (splat), every corner exchanges with its neighbours along D + 1 axes by (1/2, 1, 1/2) (blur), and the point takes
the corners' values by the same weights (slice):

    out = scale * slice(blur_D ... blur_0(splat(v)))      its adjoint: scale * slice(blur_0 ... blur_D(splat(g)))

As in the released code of Krahenbuhl's DenseCRF and of CRF-RNN a corner exists where a point's simplex has it, and what is blurred
elsewhere is lost. Differently from it the scale makes the response to evenly dense points the exact one, (2 pi)^(D/2) times their
density; the released 1 / (1 + 2^-D) gives 0.88 of that for D = 2 and 0.71 for D = 5. An image's points are thin in five dimensions:
what is lost leaves 0.8 to 0.9 of the exact sums. Normalised by its own sums a filter has no scale.

All corners are rows of one table, found by sorting integers; each step is one weighted sum of rows. The gradient to the features is that
of the barycentric weights: exact for the lattice, no use for the kernel. Of mean field's bandwidths on thirty images of 30 x 30 pixels a
quarter of the gradients has another sign than the exact filter's, and sizes differ tenfold and more: bandwidths learn on the exact filter.
"""

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.flops import declare
from models.parts.layers import at_least_float32

LARGEST = 2.0**40  # of a feature, in standard deviations: beyond, float64 no longer tells places in a simplex apart
COLUMNS = 64  # of values that are filtered at a time, so that the table is no larger than it must


class Permutohedral:
    """The filter of a batch of point sets; built once, then called for every set of values."""

    def __init__(self, features_BDN: Tensor) -> None:
        """ValueError: a feature that is not finite, or beyond 2^40."""
        self.features_BDN = features_BDN
        dimensions = features_BDN.shape[1]
        self.scale = (4 * math.pi / 3) ** (dimensions / 2) * math.sqrt(dimensions + 1) / 2 ** (dimensions + 1)
        with torch.no_grad():
            self._build(features_BDN)

    def _build(self, features_BDN: Tensor) -> None:
        dimensions = features_BDN.shape[1]
        corners = dimensions + 1
        points_PD = features_BDN.mT.reshape(-1, dimensions).double()
        if not bool((points_PD.abs() < LARGEST).all()):
            raise ValueError("filter permutohedral: features must be finite and below 2^40")
        self.embedding_CD = _embedding(dimensions, points_PD.device)
        origin_PC, order_PC, weights_PC = _simplices(points_PD @ self.embedding_CD.T)
        codes_PC, steps_C = _codes(origin_PC[:, :dimensions] * corners, order_PC, len(features_BDN))
        codes_E, entry_E = codes_PC.flatten().sort(stable=True)  # E entries: the corners of the points
        table_T, row_E, count_T = torch.unique_consecutive(codes_E, return_inverse=True, return_counts=True)
        index = torch.int32 if len(codes_E) < 2**31 else torch.int64  # half the memory, which is most of a lattice's
        self.order_PC = order_PC.to(torch.int8)
        self.weights_PC = weights_PC.to(at_least_float32(features_BDN).dtype)
        self.row_PC = torch.empty_like(row_E).scatter_(0, entry_E, row_E).view_as(codes_PC).to(index)
        self.weights_E = self.weights_PC.flatten()[entry_E]
        self.point_E = (entry_E // corners).to(index)
        self.starts_T = (count_T.cumsum(0) - count_T).to(index)
        self.neighbours = [_neighbours(table_T, step, index) for step in steps_C]

    @torch.compiler.disable
    def __call__(self, values_BVN: Tensor) -> Tensor:
        """The filtered values BVN, of the values' type, summed in float32 at least; differentiable in values and features."""
        corners = self.row_PC.shape[1]
        declare(4 * values_BVN.shape[1] * corners * (len(self.row_PC) + len(self.starts_T)))
        return _Filter.apply(self.features_BDN, values_BVN, self)

    def filter(self, values_BVN: Tensor, *, adjoint: bool = False) -> Tensor:
        """`__call__` without gradient, or its adjoint."""
        out_BVN = torch.empty_like(values_BVN)
        for start in range(0, values_BVN.shape[1], COLUMNS):
            some_BVN = values_BVN[:, start : start + COLUMNS]
            table_TV = self.blur(self.splat(_rows(some_BVN)), adjoint=adjoint)
            out_BVN[:, start : start + COLUMNS] = _columns(self.slice(table_TV), some_BVN)
        return out_BVN

    def splat(self, values_PV: Tensor) -> Tensor:
        """What the points give to the table: TV."""
        weights_E = self.weights_E.to(values_PV.dtype)
        return F.embedding_bag(self.point_E, values_PV, self.starts_T, mode="sum", per_sample_weights=weights_E)

    def blur(self, table_TV: Tensor, *, adjoint: bool = False) -> Tensor:
        """The table after the exchange along every axis; that along one is symmetric."""
        for row_T3, weights_T3 in reversed(self.neighbours) if adjoint else self.neighbours:
            table_TV = F.embedding_bag(row_T3, table_TV, mode="sum", per_sample_weights=weights_T3.to(table_TV.dtype))
        return table_TV

    def slice(self, table_TV: Tensor) -> Tensor:
        """What the points take from the table, scaled: PV."""
        weights_PC = self.weights_PC.to(table_TV.dtype) * self.scale
        return F.embedding_bag(self.row_PC, table_TV, mode="sum", per_sample_weights=weights_PC)

    def to_features(self, values_BVN: Tensor, gradient_BVN: Tensor) -> Tensor:
        """The gradient of <filtered values, gradient> to the features, through the barycentric weights: BDN."""
        values_PV, gradient_PV = _rows(values_BVN), _rows(gradient_BVN)
        taken_TV = self.blur(self.splat(values_PV))
        given_TV = self.blur(self.splat(gradient_PV), adjoint=True)
        weights_CP = [(gradient_PV * taken_TV[row_P] + values_PV * given_TV[row_P]).sum(1) for row_P in self.row_PC.unbind(1)]
        to_weights_PC = torch.stack(weights_CP, 1).double() * self.scale
        to_places_PC = torch.zeros_like(to_weights_PC).scatter_(1, self.order_PC.long(), to_weights_PC - to_weights_PC.roll(1, 1))
        to_places_PC /= to_places_PC.shape[1]  # weights are of places in units of C
        return _columns(to_places_PC @ self.embedding_CD, self.features_BDN).to(self.features_BDN.dtype)


class _Filter(Function):
    """Nothing is kept but what comes in."""

    @staticmethod
    def forward(ctx: Any, features_BDN: Tensor, values_BVN: Tensor, lattice: Permutohedral) -> Tensor:
        ctx.save_for_backward(values_BVN)
        ctx.lattice = lattice
        return lattice.filter(values_BVN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyrefly: ignore[bad-override]
        (values_BVN,) = ctx.saved_tensors
        to_features = ctx.lattice.to_features(values_BVN, gradients[0]) if ctx.needs_input_grad[0] else None
        to_values = ctx.lattice.filter(gradients[0], adjoint=True) if ctx.needs_input_grad[1] else None
        return to_features, to_values, None


def _rows(values_BVN: Tensor) -> Tensor:
    """The points of the whole batch as rows, in float32 at least: PV."""
    return at_least_float32(values_BVN).mT.reshape(-1, values_BVN.shape[1]).contiguous()  # one image's would be a view


def _columns(rows_PV: Tensor, like_BVN: Tensor) -> Tensor:
    """The batch that rows stand for."""
    batch, width, count = like_BVN.shape
    return rows_PV.view(batch, count, width).mT


def _embedding(dimensions: int, device: torch.device) -> Tensor:
    """The matrix (D + 1, D) that lays points into the hyperplane: orthogonal, and one standard deviation becomes that of the steps.

    Splat, blur and slice together have the variance of a Gaussian of sqrt(2 / 3) (D + 1).
    """
    matrix_CD = torch.zeros(dimensions + 1, dimensions, dtype=torch.float64)
    for d in range(dimensions):
        matrix_CD[: d + 1, d] = 1
        matrix_CD[d + 1, d] = -(d + 1)
        matrix_CD[:, d] *= math.sqrt(2 / 3) * (dimensions + 1) / math.sqrt((d + 1) * (d + 2))
    return matrix_CD.to(device)


def _simplices(places_PC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each point's simplex: its origin in units of C, the order of the steps that lead through its corners, and their weights.

    The origin is the nearest lattice point of remainder 0. From it each step adds (C, 0, ... 0) - (1, 1, ... 1), in the order of the
    point's distances, the largest first; the corner of weight i comes after steps 0 to i, and the last step leads back to the origin.
    """
    corners = places_PC.shape[1]
    places_PC = places_PC / corners
    origin_PC = (places_PC - 0.5).ceil()
    far_PC = places_PC - origin_PC
    rank_PC = torch.zeros_like(far_PC, dtype=torch.int64)  # pair by pair: a sort of few numbers takes longer
    for first in range(corners):
        less_PC = far_PC[:, first, None] < far_PC[:, first + 1 :]
        rank_PC[:, first] += less_PC.sum(1)
        rank_PC[:, first + 1 :] += ~less_PC
    # The origin lies beside the hyperplane by its sum; as many coordinates as that, the worst ones, were rounded the wrong way.
    rank_PC += origin_PC.sum(1, keepdim=True).long()
    wrong_PC = (rank_PC < 0).long() - (rank_PC >= corners).long()
    rank_PC += corners * wrong_PC
    origin_PC += wrong_PC
    order_PC = torch.empty_like(rank_PC).scatter_(1, rank_PC, torch.arange(corners, device=rank_PC.device).expand_as(rank_PC))
    far_PC = (places_PC - origin_PC).gather(1, order_PC)
    weights_PC = far_PC - far_PC.roll(-1, 1)
    weights_PC[:, -1] += 1
    return origin_PC.long(), order_PC, weights_PC


def _codes(origin_PD: Tensor, order_PC: Tensor, batch: int) -> tuple[Tensor, list[int]]:
    """An integer for every corner of every point, and what each axis' step adds to it.

    Coordinates are digits, with room for a neighbour of the outermost corners; the image is the first digit. Where 62 bits are too few
    the digits' factors are random instead: then two corners of a million collide with a chance below one in a million.
    """
    dimensions = origin_PD.shape[1]
    points = len(origin_PD)
    low_D = origin_PD.amin(0) - 2 * (dimensions + 1) if points else origin_PD.new_zeros(dimensions)
    widths = (origin_PD.amax(0) - low_D + 2 * (dimensions + 1) + 1).tolist() if points else [1] * dimensions
    factors = [math.prod(widths[d + 1 :]) for d in range(-1, dimensions)]  # of the image, then of the coordinates
    if factors[0] * batch >= 2**62:
        draw = random.Random(0)
        factors = [draw.getrandbits(63) | 1 for _ in factors]
    total = sum(factors[1:])
    steps = [_wrapped((dimensions + 1) * factor - total) for factor in (*factors[1:], 0)]
    images_P = torch.arange(batch, device=origin_PD.device).repeat_interleave(points // max(batch, 1))
    start_P = images_P * factors[0] + ((origin_PD - low_D) * origin_PD.new_tensor(factors[1:])).sum(1)
    return start_P[:, None] + origin_PD.new_tensor(steps)[order_PC].cumsum(1), steps


def _wrapped(value: int) -> int:
    """The value in 64 bits with sign, as sums on tensors have it."""
    return (value + 2**63) % 2**64 - 2**63


def _neighbours(table_T: Tensor, step: int, index: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of every row: the rows before, at and after it along an axis, and their weights, 0 where there is none."""
    own_T = torch.arange(len(table_T), device=table_T.device)
    goal_T = table_T + step
    after_T = torch.searchsorted(table_T, goal_T).clamp_(max=max(len(table_T) - 1, 0))
    found_T = table_T[after_T] == goal_T
    after_T = torch.where(found_T, after_T, own_T)
    before_T = own_T.clone()
    before_T[after_T[found_T]] = own_T[found_T]
    row_T3 = torch.stack([before_T, own_T, after_T], 1)
    weights_T3 = torch.where(row_T3 == own_T[:, None], 0.0, 0.5)
    weights_T3[:, 1] = 1
    return row_T3.to(index), weights_T3
