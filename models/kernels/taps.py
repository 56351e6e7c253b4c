"""Sums over a dilated window with weights of each pixel's own, and products of a pixel with its window.

With o_t the offset of tap t of a kernel_size x kernel_size window, all maps being 0 outside:

    weighted_sum(x, w)_i = sum over t of w_t(i) x(i + o_t)          transposed_sum(g, w)_j = sum over t of w_t(j - o_t) g(j - o_t)
    products(a, b)_t(i) = a(i) . b(i + o_t)

Each one's gradients are the two others, so that derivatives of any order cost no copy of the features. Maps are flattened to BCN: a
tap is then a shift along N, and weights of 0 stand where it would wrap into another row. The plain form works on blocks that stay in
a CPU's cache over all taps; on CUDA messages.py has one Triton kernel for the sum and one for both of its gradients. Sums are float32
(float64 of float64), rounded once to the features' type, without atomics: the same bits each time.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from models.kernels import use_triton
from models.kernels.superpixels import Segments, add_segment_means

BLOCK = 2**20  # numbers of one thread's share of a block: 4 MiB


def weighted_sum(x_BCHW: Tensor, weights_BTHW: Tensor, kernel_size: int, dilation: int, segments: Segments | None = None) -> Tensor:
    """The sum over the window, plus segment_means where there are segments: BCHW of x's type."""
    window = [x_BCHW.shape[-1], kernel_size, dilation]
    return _weighted_sum(x_BCHW.flatten(2), weights_BTHW.flatten(2), window, list(segments or ())).view(x_BCHW.shape)


def products(a_BCHW: Tensor, b_BCHW: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """a(i) . b(i + o_t) for each tap t: BTHW, float32 at least."""
    window = [a_BCHW.shape[-1], kernel_size, dilation]
    return _products(a_BCHW.flatten(2), b_BCHW.flatten(2), window).unflatten(2, a_BCHW.shape[-2:])


@torch.library.custom_op("segmentation::weighted_sum", mutates_args=())
def _weighted_sum(x_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor]) -> Tensor:
    if use_triton(x_BCN):
        from models.kernels import messages

        return messages.weighted_sum(x_BCN, weights_BTN, window, segments)
    return _plain_sum(x_BCN, _inside(weights_BTN, window), window, segments)


@torch.library.custom_op("segmentation::transposed_sum", mutates_args=())
def _transposed_sum(g_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor]) -> Tensor:
    if use_triton(g_BCN):
        from models.kernels import messages

        return messages.transposed_sum(g_BCN, weights_BTN, window, segments)
    return _plain_sum(g_BCN, _turned(_inside(weights_BTN, window), window), window, segments)


@torch.library.custom_op("segmentation::window_products", mutates_args=())
def _products(a_BCN: Tensor, b_BCN: Tensor, window: Sequence[int]) -> Tensor:
    if use_triton(a_BCN):
        from models.kernels import messages

        return messages.products(a_BCN, b_BCN, window)
    return _inside(_plain_products(a_BCN, b_BCN, window), window)


@torch.library.custom_op("segmentation::weighted_sum_gradients", mutates_args=())
def _gradients(
    g_BCN: Tensor, x_BCN: Tensor, weights_BTN: Tensor, window: Sequence[int], segments: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What transposed_sum(g, weights) and products(g, x) give."""
    if use_triton(x_BCN):
        from models.kernels import messages

        return messages.gradients(g_BCN, x_BCN, weights_BTN, window, segments)
    return _transposed_sum(g_BCN, weights_BTN, window, segments), _products(g_BCN, x_BCN, window)


Window = Sequence[int]  # width of the map, kernel_size, dilation


def _plain_sum(x_BCN: Tensor, weights_BTN: Tensor, window: Window, segments: Sequence[Tensor]) -> Tensor:
    total_BCN = torch.empty_like(x_BCN, dtype=torch.promote_types(x_BCN.dtype, torch.float32))
    weights_BTN = weights_BTN.to(total_BCN.dtype)
    for image, tap, here, there in _steps(x_BCN, window):
        x, weight = x_BCN[image, :, there].to(total_BCN.dtype), weights_BTN[image, tap : tap + 1, here]
        if tap == window[1] ** 2 // 2:  # it comes first and reaches every pixel
            torch.mul(x, weight, out=total_BCN[image, :, here])
        else:
            total_BCN[image, :, here].addcmul_(x, weight)
    if segments:
        add_segment_means(total_BCN, x_BCN, segments)
    return total_BCN.to(x_BCN.dtype)


def _plain_products(a_BCN: Tensor, b_BCN: Tensor, window: Window) -> Tensor:
    products_BTN = _empty_products(a_BCN, window).zero_()
    for image, tap, here, there in _steps(a_BCN, window):
        a, b = (part.to(products_BTN.dtype) for part in (a_BCN[image, :, here], b_BCN[image, :, there]))
        torch.sum(a * b, 1, out=products_BTN[image, tap, here])
    return products_BTN


def _empty_products(a_BCN: Tensor, window: Window) -> Tensor:
    batch, _, pixels = a_BCN.shape
    return a_BCN.new_empty(batch, window[1] ** 2, pixels, dtype=torch.promote_types(a_BCN.dtype, torch.float32))


def _inside(weights_BTN: Tensor, window: Window) -> Tensor:
    """The weights, 0 where a tap leaves its pixel's row at a side; those that leave at top or bottom lie outside of N."""
    width, kernel_size, dilation = window
    columns_N = torch.arange(weights_BTN.shape[-1], device=weights_BTN.device) % width
    rights_T = dilation * (torch.arange(kernel_size**2, device=weights_BTN.device) % kernel_size - kernel_size // 2)
    reached_TN = columns_N + rights_T[:, None]
    return weights_BTN.where((reached_TN >= 0) & (reached_TN < width), 0)


def _turned(weights_BTN: Tensor, window: Window) -> Tensor:
    """The weights that send back what `weights` fetched: those of a neighbour towards a pixel, at the pixel."""
    turned_BTN = torch.zeros_like(weights_BTN)
    for image, tap, here, there in _steps(weights_BTN, window):
        turned_BTN[image, tap, here] = weights_BTN[image, weights_BTN.shape[1] - 1 - tap, there]
    return turned_BTN


def _steps(x_BCN: Tensor, window: Window) -> Iterator[tuple[slice, int, slice, slice]]:
    """(image, tap, pixels, these pixels' neighbours), block by block; all taps of a block one after the other, the centre first."""
    (batch, channels, pixels), (width, kernel_size, dilation) = x_BCN.shape, window
    length = pixels if x_BCN.is_cuda else max(BLOCK * torch.get_num_threads() // max(channels, 1), 1)
    offsets = [dilation * (step - kernel_size // 2) for step in range(kernel_size)]
    near = [(tap, d * width + r) for tap, (d, r) in enumerate(itertools.product(offsets, offsets)) if abs(r) < width]
    near.sort(key=lambda found: found[0] != kernel_size**2 // 2)
    for image, start in itertools.product(range(batch), range(0, pixels, length)):
        for tap, shift in near:
            first, last = max(start, -shift), min(start + length, pixels, pixels - shift)
            if first < last:
                yield slice(image, image + 1), tap, slice(first, last), slice(first + shift, last + shift)


@_weighted_sum.register_fake
@_transposed_sum.register_fake
def _(x_BCN: Tensor, weights_BTN: Tensor, window: Window, segments: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(x_BCN)


@_products.register_fake
def _(a_BCN: Tensor, b_BCN: Tensor, window: Window) -> Tensor:
    return _empty_products(a_BCN, window)


@_gradients.register_fake
def _(g_BCN: Tensor, x_BCN: Tensor, weights_BTN: Tensor, window: Window, segments: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(g_BCN), _empty_products(g_BCN, window)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Tensors first, then the window, then the segments where there may be some."""
    tensors = [part for part in inputs if isinstance(part, Tensor)]
    ctx.window, segments = inputs[len(tensors)], inputs[len(tensors) + 1 :]
    ctx.save_for_backward(*tensors, *(segments[0] if segments else ()))


def _of_weighted_sum(ctx: Any, g_BCN: Tensor) -> tuple[Any, ...]:
    x_BCN, weights_BTN, *segments = ctx.saved_tensors
    to_x, to_weights = ctx.needs_input_grad[:2]
    if to_x and to_weights:
        return *_gradients(g_BCN, x_BCN, weights_BTN, ctx.window, segments), None, [None] * len(segments)
    return (
        _transposed_sum(g_BCN, weights_BTN, ctx.window, segments) if to_x else None,
        _products(g_BCN, x_BCN, ctx.window) if to_weights else None,
        None,
        [None] * len(segments),
    )


def _of_transposed_sum(ctx: Any, gradient_BCN: Tensor) -> tuple[Any, ...]:
    g_BCN, weights_BTN, *segments = ctx.saved_tensors
    of_g = _weighted_sum(gradient_BCN, weights_BTN, ctx.window, segments)
    return of_g, _products(g_BCN, gradient_BCN, ctx.window), None, [None] * len(segments)


def _of_products(ctx: Any, gradient_BTN: Tensor) -> tuple[Any, ...]:
    a_BCN, b_BCN = ctx.saved_tensors
    to_a, to_b = ctx.needs_input_grad[:2]
    return (
        _weighted_sum(b_BCN, gradient_BTN, ctx.window, []) if to_a else None,
        _transposed_sum(a_BCN, gradient_BTN, ctx.window, []) if to_b else None,
        None,
    )


def _of_gradients(ctx: Any, to_x_BCN: Tensor, to_weights_BTN: Tensor) -> tuple[Any, ...]:
    """Second derivatives: those of both results together."""
    g_BCN, x_BCN, weights_BTN, *segments = ctx.saved_tensors
    window = ctx.window
    of_g = _weighted_sum(to_x_BCN, weights_BTN, window, segments) + _weighted_sum(x_BCN, to_weights_BTN, window, [])
    of_x, of_weights = _transposed_sum(g_BCN, to_weights_BTN, window, []), _products(g_BCN, to_x_BCN, window)
    return of_g, of_x, of_weights, None, [None] * len(segments)


for operation, gradient in (
    (_weighted_sum, _of_weighted_sum), (_transposed_sum, _of_transposed_sum), (_products, _of_products), (_gradients, _of_gradients),
):  # fmt: skip
    operation.register_autograd(gradient, setup_context=_keep)
