"""Triton kernels of taps.py and superpixels.py, which have the plain forms and the equations.

Maps are BCN, flattened, with any strides; sums are float32 (float64 of float64) and rounded once. A tile is a block of pixels of one
image: neighbouring programs read the same pixels, so that the window's nine reads are one from memory and eight from the cache. The
two gradients of the weighted sum are one launch, whose programs of one tile do one tap's products or one block of channels' sum each.
No atomics: the results do not depend on the order of programs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 512  # programs for the superpixels of an image; each goes on to the one SLOTS further


@triton.jit
def _tap(tap, pixel, H, W, KERNEL: tl.constexpr, DILATION: tl.constexpr):
    """(shift along N, whether it stays inside) of a tap."""
    down = (tap // KERNEL - KERNEL // 2) * DILATION
    right = (tap % KERNEL - KERNEL // 2) * DILATION
    row, column = pixel // W + down, pixel % W + right
    return down * W + right, (row >= 0) & (row < H) & (column >= 0) & (column < W)


@triton.jit
def _sum(
    x_ptr, w_ptr, out_ptr, index_ptr, table_ptr, image, tile, block, C, H, W, x_b, x_c, x_n, out_b, out_c, out_n,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, TURNED: tl.constexpr, SEGMENTS: tl.constexpr,
    SUM: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """weighted_sum, or transposed_sum where TURNED, for a block of channels; weights are B, KERNEL ** 2, N."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    UNROLLED: tl.constexpr = TAPS if TAPS <= 9 else 1  # pyrefly: ignore[bad-assignment]
    N = H * W
    pixel, channel = tile * PIXELS + tl.arange(0, PIXELS), block * CHANNELS + tl.arange(0, CHANNELS)
    here, real = pixel < N, (channel < C)[:, None]
    x_ptrs = x_ptr + image * x_b + channel[:, None].to(tl.int64) * x_c + pixel[None, :] * x_n
    total = tl.zeros((CHANNELS, PIXELS), SUM)
    for tap in tl.range(0, TAPS, loop_unroll_factor=UNROLLED):
        shift, inside = _tap(tap, pixel, H, W, KERNEL, DILATION)
        inside = inside & here
        w_ptrs = w_ptr + (image * TAPS + tap) * N + pixel
        if TURNED:  # the neighbour's weight of the tap that leads back
            w_ptrs += (TAPS - 1 - 2 * tap) * N + shift
        weight = tl.load(w_ptrs, mask=inside, other=0).to(SUM)
        total += weight[None, :] * tl.load(x_ptrs + shift * x_n, mask=real & inside[None, :], other=0).to(SUM)
    if SEGMENTS:
        segment = tl.load(index_ptr + image * N + pixel, mask=here, other=0)
        row = (image * N + segment) * C
        total += tl.load(table_ptr + row[None, :] + channel[:, None], mask=real & here[None, :], other=0)
    out_ptrs = out_ptr + image * out_b + channel[:, None].to(tl.int64) * out_c + pixel[None, :] * out_n
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=real & here[None, :])


@triton.jit
def _product(
    a_ptr, b_ptr, out_ptr, image, tile, tap, C, H, W, a_b, a_c, a_n, b_b, b_c, b_n,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, SUM: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One tap of products; out is B, KERNEL ** 2, N."""
    N = H * W
    pixel, channel = tile * PIXELS + tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    shift, inside = _tap(tap, pixel, H, W, KERNEL, DILATION)
    inside = inside & (pixel < N)
    a_ptrs = a_ptr + image * a_b + channel[:, None].to(tl.int64) * a_c + pixel[None, :] * a_n
    b_ptrs = b_ptr + image * b_b + channel[:, None].to(tl.int64) * b_c + (pixel + shift)[None, :] * b_n
    total = tl.zeros((CHANNELS, PIXELS), SUM)
    for start in range(0, C, CHANNELS):
        mask = (start + channel < C)[:, None] & inside[None, :]
        total += tl.load(a_ptrs, mask=mask, other=0).to(SUM) * tl.load(b_ptrs, mask=mask, other=0).to(SUM)
        a_ptrs += CHANNELS * a_c
        b_ptrs += CHANNELS * b_c
    tl.store(out_ptr + (image * KERNEL * KERNEL + tap) * N + pixel, tl.sum(total, 0), mask=pixel < N)


@triton.jit
def sum_kernel(
    x_ptr, w_ptr, out_ptr, index_ptr, table_ptr, C, H, W, x_b, x_c, x_n, out_b, out_c, out_n,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, TURNED: tl.constexpr, SEGMENTS: tl.constexpr,
    SUM: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """A program for each tile, block of channels and image."""
    image = tl.program_id(2).to(tl.int64)
    _sum(
        x_ptr, w_ptr, out_ptr, index_ptr, table_ptr, image, tl.program_id(0), tl.program_id(1), C, H, W, x_b, x_c, x_n,
        out_b, out_c, out_n, KERNEL, DILATION, TURNED, SEGMENTS, SUM, CHANNELS, PIXELS,
    )  # fmt: skip


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr, C, H, W, a_b, a_c, a_n, b_b, b_c, b_n,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, SUM: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """A program for each tap of each tile, and each image."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    tile, tap, image = tl.program_id(0) // TAPS, tl.program_id(0) % TAPS, tl.program_id(1).to(tl.int64)
    _product(a_ptr, b_ptr, out_ptr, image, tile, tap, C, H, W, a_b, a_c, a_n, b_b, b_c, b_n, KERNEL, DILATION, SUM, CHANNELS, PIXELS)


@triton.jit
def gradient_kernel(
    g_ptr, x_ptr, w_ptr, to_x_ptr, to_w_ptr, index_ptr, table_ptr, C, H, W,
    g_b, g_c, g_n, x_b, x_c, x_n, to_x_b, to_x_c, to_x_n,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, SEGMENTS: tl.constexpr,
    SUM: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Of each tile and image: a program for each tap's products, and one for each block of channels of the transposed sum."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    parts = TAPS + tl.cdiv(C, CHANNELS)
    tile, part, image = tl.program_id(0) // parts, tl.program_id(0) % parts, tl.program_id(1).to(tl.int64)
    if part < TAPS:
        _product(g_ptr, x_ptr, to_w_ptr, image, tile, part, C, H, W, g_b, g_c, g_n, x_b, x_c, x_n, KERNEL, DILATION, SUM, CHANNELS, PIXELS)
    else:
        _sum(
            g_ptr, w_ptr, to_x_ptr, index_ptr, table_ptr, image, tile, part - TAPS, C, H, W, g_b, g_c, g_n,
            to_x_b, to_x_c, to_x_n, KERNEL, DILATION, True, SEGMENTS, SUM, CHANNELS, PIXELS,  # pyrefly: ignore[bad-argument-type]
        )  # fmt: skip


@triton.jit
def table_kernel(
    x_ptr, table_ptr, order_ptr, starts_ptr, shares_ptr, C, N, x_b, x_c, x_n,
    PROGRAMS: tl.constexpr, SUM: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Share times sum over each superpixel of an image, for a block of channels; superpixels that do not exist begin at N."""
    image, slot = tl.program_id(2).to(tl.int64), tl.program_id(0)
    channel, member = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, PIXELS)
    real = (channel < C)[:, None]
    x_ptrs = x_ptr + image * x_b + channel[:, None].to(tl.int64) * x_c
    starts_ptr += image * (N + 1)
    start = tl.load(starts_ptr + slot)
    while start < N:
        end, share = tl.load(starts_ptr + slot + 1), tl.load(shares_ptr + image * N + slot).to(SUM)
        total = tl.zeros((CHANNELS, PIXELS), SUM)
        if share != 0:
            for first in range(start, end, PIXELS):
                mask = first + member < end
                pixel = tl.load(order_ptr + image * N + first + member, mask=mask, other=0)
                total += tl.load(x_ptrs + pixel[None, :] * x_n, mask=real & mask[None, :], other=0).to(SUM)
        tl.store(table_ptr + (image * N + slot) * C + channel, tl.sum(total, 1) * share, mask=channel < C)
        slot += PROGRAMS
        start = tl.load(starts_ptr + tl.minimum(slot, N))


def weighted_sum(x_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor]) -> Tensor:
    """The sum over the window, plus the means over superpixels where there are segments."""
    return _launch_sum(x_BCN, weights_BTN, window, segments, turned=False)


def transposed_sum(g_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor]) -> Tensor:
    """Its transpose."""
    return _launch_sum(g_BCN, weights_BTN, window, segments, turned=True)


def _launch_sum(x_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor], turned: bool) -> Tensor:
    batch, channels, pixels = x_BCN.shape
    out_BCN, constants = torch.empty_like(x_BCN), _constants(x_BCN, window)
    index, table = _tables(x_BCN, segments)
    grid = (triton.cdiv(pixels, constants["PIXELS"]), triton.cdiv(channels, constants["CHANNELS"]), batch)
    constants |= {"TURNED": turned, "SEGMENTS": bool(segments)}
    _launch(
        sum_kernel, grid, x_BCN, weights_BTN.contiguous(), out_BCN, index, table, channels, pixels // window[0], window[0],
        *x_BCN.stride(), *out_BCN.stride(), **constants,
    )  # fmt: skip
    return out_BCN


def products(a_BCN: Tensor, b_BCN: Tensor, window: Sequence[int]) -> Tensor:
    """a(i) . b(i + o_t) for each tap t."""
    batch, channels, pixels = a_BCN.shape
    constants, taps = _constants(a_BCN, window), window[1] ** 2
    out_BTN = a_BCN.new_empty(batch, taps, pixels, dtype=torch.promote_types(a_BCN.dtype, torch.float32))
    _launch(
        product_kernel, (triton.cdiv(pixels, constants["PIXELS"]) * taps, batch), a_BCN, b_BCN, out_BTN,
        channels, pixels // window[0], window[0], *a_BCN.stride(), *b_BCN.stride(), **constants,
    )  # fmt: skip
    return out_BTN


def gradients(
    g_BCN: Tensor, x_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """transposed_sum(g, weights) and products(g, x)."""
    batch, channels, pixels = x_BCN.shape
    constants, taps = _constants(g_BCN, window), window[1] ** 2
    to_x_BCN = torch.empty_like(g_BCN)
    to_weights_BTN = torch.empty_like(weights_BTN, memory_format=torch.contiguous_format)
    index, table = _tables(g_BCN, segments)
    parts = taps + triton.cdiv(channels, constants["CHANNELS"])
    constants |= {"SEGMENTS": bool(segments)}
    _launch(
        gradient_kernel, (triton.cdiv(pixels, constants["PIXELS"]) * parts, batch), g_BCN, x_BCN, weights_BTN.contiguous(),
        to_x_BCN, to_weights_BTN, index, table, channels, pixels // window[0], window[0],
        *g_BCN.stride(), *x_BCN.stride(), *to_x_BCN.stride(), **constants,
    )  # fmt: skip
    return to_x_BCN, to_weights_BTN


def segment_table(x_BCN: Tensor, segments: Sequence[Tensor]) -> Tensor:
    """Share times sum over each superpixel: B, S = N, C; undefined for those that do not exist."""
    batch, channels, pixels = x_BCN.shape
    _, order_BN, starts_BM, shares_BS = segments
    table_BSC = x_BCN.new_empty(batch, pixels, channels, dtype=torch.promote_types(x_BCN.dtype, torch.float32))
    programs, block = min(SLOTS, pixels), min(32, triton.next_power_of_2(channels))
    constants: dict[str, Any] = {"PROGRAMS": programs, "SUM": _sum_type(x_BCN), "CHANNELS": block, "PIXELS": 32}
    grid = (programs, triton.cdiv(channels, block), batch)
    _launch(table_kernel, grid, x_BCN, table_BSC, order_BN, starts_BM, shares_BS, channels, pixels, *x_BCN.stride(), **constants)
    return table_BSC


def _launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *rest: Tensor | int, **constants: Any) -> None:
    """The kernel on the first tensor's GPU, which need not be the current one, as Triton takes it to be."""
    with torch.cuda.device_of(like):
        kernel[grid](like, *rest, **constants)


def _tables(x_BCN: Tensor, segments: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The pixels' superpixels and these superpixels' values; anything at all where there are none, as nothing is read."""
    return (segments[0], segment_table(x_BCN, segments)) if segments else (x_BCN, x_BCN)


def _constants(x_BCN: Tensor, window: Sequence[int]) -> dict[str, Any]:
    """The window, the sums' type and the tile, whose longer side lies along memory."""
    channels, pixels = (64, 32) if x_BCN.stride(1) == 1 else (16, 128)
    tile = {"CHANNELS": min(channels, triton.next_power_of_2(x_BCN.shape[1])), "PIXELS": pixels}
    return {"KERNEL": window[1], "DILATION": window[2], "SUM": _sum_type(x_BCN), **tile}


def _sum_type(x_BCN: Tensor) -> tl.dtype:
    return tl.float64 if x_BCN.dtype == torch.float64 else tl.float32
