"""The two operations of shifts.py for all rates at once, in one launch each, so that their maps are read from a GPU's memory once.

A block holds some pixels and channels of one image, along the axis that
is dense in memory. Nothing is added atomically; sums are float32 (float64 of float64), rounded once. Maps larger than 2^31 values work.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.shifts_memory import empty_sums, empty_taps, layout

LONG, SHORT = 128, 8  # sides of a block, the long one along the dense axis


@triton.jit
def block(channels, height, width, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(image, row, column, channel, whether it exists) of the program's values, the dense axis last."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if CHANNELS_LAST:
        pixel, channel = pixel[:, None], channel[None, :]
    else:
        pixel, channel = pixel[None, :], channel[:, None]
    return tl.program_id(2).to(tl.int64), pixel // width, pixel % width, channel, (pixel < height * width) & (channel < channels)


@triton.jit
def spread_kernel(
    taps_ptr, sums_ptrs, channels, height, width, taps_b, taps_t, taps_c, taps_h, taps_w, sums_b, sums_c, sums_h, sums_w,
    RATES: tl.constexpr, ACCUMULATOR: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """sums_r(p) = the sum over t of taps_t(p + r * offset_t)."""
    image, row, column, channel, exists = block(channels, height, width, PIXELS, CHANNELS, CHANNELS_LAST)
    long_row, long_column, long_channel = row.to(tl.int64), column.to(tl.int64), channel.to(tl.int64)
    source = taps_ptr + (image * taps_b + long_row * taps_h + long_column * taps_w + long_channel * taps_c)
    target = image * sums_b + long_row * sums_h + long_column * sums_w + long_channel * sums_c
    centre = tl.load(source + 4 * taps_t, mask=exists, other=0).to(ACCUMULATOR)
    for index in tl.static_range(len(RATES)):  # pyrefly: ignore[bad-argument-type]
        total = centre
        for step in range(8):
            tap = tl.cast(step + (step >= 4), tl.int64)  # all but the centre
            down, right = (tap // 3 - 1) * RATES[index], (tap % 3 - 1) * RATES[index]
            reached = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
            there = source + (tap * taps_t + down * taps_h + right * taps_w)
            total += tl.load(there, mask=exists & reached, other=0).to(ACCUMULATOR)
        tl.store(sums_ptrs[index] + target, total, mask=exists)


@triton.jit
def collect_kernel(
    maps_ptrs, taps_ptr, channels, height, width, maps_b, maps_c, maps_h, maps_w, taps_b, taps_t, taps_c, taps_h, taps_w,
    RATES: tl.constexpr, ACCUMULATOR: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """taps_t(p) = the sum over r of maps_r(p - r * offset_t)."""
    image, row, column, channel, exists = block(channels, height, width, PIXELS, CHANNELS, CHANNELS_LAST)
    long_row, long_column, long_channel = row.to(tl.int64), column.to(tl.int64), channel.to(tl.int64)
    source = image * maps_b + long_row * maps_h + long_column * maps_w + long_channel * maps_c
    target = taps_ptr + (image * taps_b + long_row * taps_h + long_column * taps_w + long_channel * taps_c)
    for step in range(9):
        tap = tl.cast(step, tl.int64)
        total = tl.zeros_like(source).to(ACCUMULATOR)
        for index in tl.static_range(len(RATES)):  # pyrefly: ignore[bad-argument-type]
            up, left = (tap // 3 - 1) * RATES[index], (tap % 3 - 1) * RATES[index]
            reached = (row - up >= 0) & (row - up < height) & (column - left >= 0) & (column - left < width)
            there = maps_ptrs[index] + (source - up * maps_h - left * maps_w)
            total += tl.load(there, mask=exists & reached, other=0).to(ACCUMULATOR)
        tl.store(target + tap * taps_t, total, mask=exists)


def spread(taps_BTCHW: Tensor, rates: Sequence[int]) -> list[Tensor]:
    """As shifts.spread."""
    sums = empty_sums(taps_BTCHW, rates, taps_BTCHW.dtype)
    _launch(spread_kernel, (taps_BTCHW, tuple(sums)), sums[0], (*taps_BTCHW.stride(), *sums[0].stride()), rates)
    return sums


def collect(maps_BCHW: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """As shifts.collect."""
    maps = tuple(map_BCHW.contiguous(memory_format=layout(maps_BCHW[0])) for map_BCHW in maps_BCHW)
    taps_BTCHW = empty_taps(maps_BCHW[0], maps_BCHW[0].dtype)
    _launch(collect_kernel, (maps, taps_BTCHW), maps[0], (*maps[0].stride(), *taps_BTCHW.stride()), rates)
    return taps_BTCHW


def _launch(
    kernel: triton.JITFunction, pointers: tuple[object, object], like_BCHW: Tensor, strides: Sequence[int], rates: Sequence[int]
) -> None:
    batch, channels, height, width = like_BCHW.shape
    if like_BCHW.numel() == 0:
        return
    channels_last = layout(like_BCHW) == torch.channels_last
    pixel_block, channel_block = (SHORT, LONG) if channels_last else (LONG, SHORT)
    grid = (triton.cdiv(height * width, pixel_block), triton.cdiv(channels, channel_block), batch)
    accumulator = tl.float64 if like_BCHW.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(like_BCHW):
        kernel[grid](*pointers, channels, height, width, *strides, tuple(rates), accumulator, pixel_block, channel_block, channels_last)
