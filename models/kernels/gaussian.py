"""The exact Gaussian filter over lists of near tiles, and its gradient to the features, for CUDA.

One program has one tile and goes through its neighbours, so that nothing is added twice and the bits are the same each time. Features
are subtracted first, products are IEEE float32. The plain form, on pairs of tiles, is in models/filters/exact.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.flops import declare
from models.kernels.tiles import Tiles

CHANNELS = 32  # values that a program takes at once


def filtered(tiles: Tiles, values_TVn: Tensor) -> Tensor:
    """The sum over j of 2^(-|x_i - x_j|^2 / 2) v_j for values in tiles, float32: TVn."""
    total, channels, size = values_TVn.shape
    out_TVn = torch.empty_like(values_TVn)
    if not out_TVn.numel():
        return out_TVn
    _declare(tiles, channels)
    constants: Any = {"DEPTH": tiles.offsets_TDn.shape[1], **_blocks(size, channels)}
    with torch.cuda.device_of(values_TVn):  # which need not be the current GPU, as Triton takes it to be
        filter_kernel[(total, triton.cdiv(channels, CHANNELS))](
            tiles.offsets_TDn, tiles.centres_TD, values_TVn, *tiles.neighbours, out_TVn, channels, size, **constants
        )
    return out_TVn


def pulls(tiles: Tiles, values_TVn: Tensor, gradient_TVn: Tensor) -> Tensor:
    """The sum over j of 2^(-|x_i - x_j|^2 / 2) (g_i . v_j + v_i . g_j) (x_j - x_i) for float32 in tiles: TDn."""
    total, channels, size = values_TVn.shape
    out_TDn = torch.empty_like(tiles.offsets_TDn)
    if not out_TDn.numel():
        return out_TDn
    depth = out_TDn.shape[1]
    _declare(tiles, 2 * channels + depth)
    constants: Any = {"DEPTH": depth, "COLUMNS": triton.next_power_of_2(depth), **_blocks(size, channels)}
    with torch.cuda.device_of(values_TVn):
        pull_kernel[(total,)](
            tiles.offsets_TDn, tiles.centres_TD, values_TVn, gradient_TVn, *tiles.neighbours, out_TDn, channels, size, **constants
        )
    return out_TDn


def _blocks(size: int, channels: int) -> dict[str, int]:
    """Of all points of a tile, and of its channels; at least the 16 that a product takes. Eight warps hold them in registers."""
    points, columns = (max(16, triton.next_power_of_2(length)) for length in (size, channels))
    return {"BLOCK": points, "CHANNELS": min(CHANNELS, columns), "num_warps": 8}


def _declare(tiles: Tiles, products: int) -> None:
    """A multiply-add for each pair of points and product, and for each of their distance's dimensions."""
    _, depth, size = tiles.offsets_TDn.shape
    declare(2 * len(tiles.neighbours[1]) * size**2 * (products + depth))


@triton.jit
def pair_kernel(offsets, centres, here, there, rows, size, DEPTH: tl.constexpr, BLOCK: tl.constexpr):
    """2^(-|x_i - x_j|^2 / 2) of the points of two tiles."""
    squares = tl.zeros((BLOCK, BLOCK), tl.float32)
    for d in tl.static_range(DEPTH):
        shift = tl.load(centres + there * DEPTH + d) - tl.load(centres + here * DEPTH + d)
        x = tl.load(offsets + (here * DEPTH + d) * size + rows, rows < size, 0.0)
        y = tl.load(offsets + (there * DEPTH + d) * size + rows, rows < size, 0.0) + shift
        apart = x[:, None] - y[None, :]
        squares += apart * apart
    return tl.exp2(-0.5 * squares)


@triton.jit
def channels_of(values, tile, rows, columns, channels, size):
    """A tile's values as (point, channel), 0 outside: unused places add nothing."""
    inside = (rows[:, None] < size) & (columns[None, :] < channels)
    return tl.load(values + (tile * channels + columns[None, :]) * size + rows[:, None], inside, 0.0)


@triton.jit
def filter_kernel(
    offsets, centres, values, starts, neighbours, out, channels, size,
    DEPTH: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile's sums of a block of channels."""
    here = tl.program_id(0).to(tl.int64)
    rows, columns = tl.arange(0, BLOCK), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for entry in range(tl.load(starts + here), tl.load(starts + here + 1)):
        there = tl.load(neighbours + entry).to(tl.int64)
        kernel = pair_kernel(offsets, centres, here, there, rows, size, DEPTH, BLOCK)
        total += tl.dot(kernel, channels_of(values, there, rows, columns, channels, size), input_precision="ieee")
    inside = (rows[:, None] < size) & (columns[None, :] < channels)
    tl.store(out + (here * channels + columns[None, :]) * size + rows[:, None], total, inside)


@triton.jit
def pull_kernel(
    offsets, centres, values, gradients, starts, neighbours, out, channels, size,
    DEPTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile's gradient to the features."""
    here = tl.program_id(0).to(tl.int64)
    rows, dimensions = tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for entry in range(tl.load(starts + here), tl.load(starts + here + 1)):
        there = tl.load(neighbours + entry).to(tl.int64)
        weights = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in range(0, channels, CHANNELS):
            columns = start + tl.arange(0, CHANNELS)
            here_v = channels_of(values, here, rows, columns, channels, size)
            here_g = channels_of(gradients, here, rows, columns, channels, size)
            there_v = channels_of(values, there, rows, columns, channels, size)
            there_g = channels_of(gradients, there, rows, columns, channels, size)
            weights += tl.dot(here_g, tl.trans(there_v), input_precision="ieee")
            weights += tl.dot(here_v, tl.trans(there_g), input_precision="ieee")
        weights *= pair_kernel(offsets, centres, here, there, rows, size, DEPTH, BLOCK)
        for d in tl.static_range(DEPTH):
            shift = tl.load(centres + there * DEPTH + d) - tl.load(centres + here * DEPTH + d)
            x = tl.load(offsets + (here * DEPTH + d) * size + rows, rows < size, 0.0)
            y = tl.load(offsets + (there * DEPTH + d) * size + rows, rows < size, 0.0) + shift
            pull = tl.sum(weights * (y[None, :] - x[:, None]), 1)
            total += tl.where(dimensions[None, :] == d, pull[:, None], 0.0)  # pyrefly: ignore[bad-index]
    inside = (rows[:, None] < size) & (dimensions[None, :] < DEPTH)
    tl.store(out + (here * DEPTH + dimensions[None, :]) * size + rows[:, None], total, inside)
