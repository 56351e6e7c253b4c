"""Maps shifted and added, for convolutions of several dilation rates that share one kernel of 3x3 taps (models/heads/ksac.py).

With o_t the offset of tap t, one pixel or none along each axis, and all maps being 0 outside:

    spread(z, R)_r(p) = sum over t of z_t(p + r o_t)          collect(g, R)_t(p) = sum over r in R of g_r(p - r o_t)

Each is the other's gradient, so nothing is kept and derivatives of any order cost the same. Sums are float32 (float64 of float64),
rounded once. On CUDA a Triton kernel of shifts_triton.py does all rates at once.
"""

from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from models.kernels import use_triton
from models.kernels.shifts_memory import CENTRE, TAPS, empty_sums, empty_taps


@torch.library.custom_op("segmentation::spread", mutates_args=())
def spread(taps_BTCHW: Tensor, rates: Sequence[int]) -> list[Tensor]:
    """For each rate the sum of the nine taps' maps, each shifted by the rate: BCHW, laid out in memory as the taps are."""
    if use_triton(taps_BTCHW):
        from models.kernels import shifts_triton

        return shifts_triton.spread(taps_BTCHW, rates)
    totals = empty_sums(taps_BTCHW, rates, _accumulator(taps_BTCHW))
    for total_BCHW in totals:
        total_BCHW.copy_(taps_BTCHW[:, CENTRE])
    for tap in range(TAPS):
        for rate, total_BCHW in zip(rates, totals, strict=True):
            if tap != CENTRE:
                here, there = places(total_BCHW.shape, rate, tap)
                total_BCHW[here].add_(taps_BTCHW[:, tap][there])
    return [total_BCHW.to(taps_BTCHW.dtype) for total_BCHW in totals]


@torch.library.custom_op("segmentation::collect", mutates_args=())
def collect(maps_BCHW: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """The transpose of `spread`: BTCHW of the nine taps from a map for each rate, laid out as the first map is."""
    if use_triton(maps_BCHW[0]):
        from models.kernels import shifts_triton

        return shifts_triton.collect(maps_BCHW, rates)
    taps_BTCHW = empty_taps(maps_BCHW[0], _accumulator(maps_BCHW[0])).zero_()
    for tap in range(TAPS):
        for rate, map_BCHW in zip(rates, maps_BCHW, strict=True):
            here, there = places(map_BCHW.shape, rate, tap)
            taps_BTCHW[:, tap][there].add_(map_BCHW[here])
    return taps_BTCHW.to(maps_BCHW[0].dtype)


Place = tuple[EllipsisType, slice, slice]


def places(shape: Sequence[int], rate: int, tap: int) -> tuple[Place, Place]:
    """The pixels whose neighbour at a tap lies inside the map, and these neighbours; there may be none."""
    down, right = (rate * (step - 1) for step in divmod(tap, 3))
    (rows, rows_there), (columns, columns_there) = _overlap(shape[-2], down), _overlap(shape[-1], right)
    return (..., rows, columns), (..., rows_there, columns_there)


def _overlap(length: int, offset: int) -> tuple[slice, slice]:
    """Places i and i + offset such that both lie in range(length)."""
    start, count = max(0, -offset), max(0, length - abs(offset))
    return slice(start, start + count), slice(start + offset, start + offset + count)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@spread.register_fake
def _(taps_BTCHW: Tensor, rates: Sequence[int]) -> list[Tensor]:
    return empty_sums(taps_BTCHW, rates, taps_BTCHW.dtype)


@collect.register_fake
def _(maps_BCHW: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    return empty_taps(maps_BCHW[0], maps_BCHW[0].dtype)


def _keep_rates(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.rates = inputs[1]


def _spread_gradient(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor, None]:
    return collect(gradients, ctx.rates), None


def _collect_gradient(ctx: Any, gradient_BTCHW: Tensor) -> tuple[list[Tensor], None]:
    return spread(gradient_BTCHW, ctx.rates), None


spread.register_autograd(_spread_gradient, setup_context=_keep_rates)
collect.register_autograd(_collect_gradient, setup_context=_keep_rates)
