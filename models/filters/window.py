"""Gaussian filters over a square window, as a loop over its taps: no copies of what is filtered, gradients by the same loops.

    (K q)_i = sum over j in the window of i of k(i, j) q_j        k(i, j) = sum over m of weight_m exp(-|f_m(i) - f_m(j)|^2 / 2)

j = i belongs to the window; outside the image q is 0. As k(i, j) = k(j, i), half of the taps tell all, and K is its own transpose.
Maps are laid out row after row with a margin of zeros behind each, so that a tap is one shift of a flat array: what a window
finds beside the image is a margin's 0, which neither gives nor takes.
k is kept (one number for each pixel and half tap) and not computed again in every iteration: with 21 classes that takes 0.6 of the time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models import flops


class Window(NamedTuple):
    """The taps of a window on maps of one size: the centre, and one of each two that are opposite."""

    size: tuple[int, int]
    margin: int  # zeros behind each row
    shifts: tuple[int, ...]  # how far the taps are in the flat layout; the centre's 0 is the first

    @classmethod
    def of(cls, size: tuple[int, int], filter_size: int) -> "Window":
        """filter_size is odd; taps that reach nothing in an image smaller than the window are left out."""
        down, right = (min(filter_size // 2, length - 1) for length in size)
        row = size[1] + right
        return cls(size, right, tuple(y * row + x for y in range(down + 1) for x in range(-right, right + 1) if (y, x) >= (0, 0)))

    def flat(self, x_BChw: Tensor) -> Tensor:
        """The map in the flat layout: BCL."""
        return F.pad(x_BChw.contiguous(), (0, self.margin)).flatten(2)

    def back(self, x_BCL: Tensor) -> Tensor:
        """`flat` undone; what stands in the margins is dropped."""
        return x_BCL.unflatten(2, (self.size[0], -1))[..., : self.size[1]]

    def pairs(self, x_BCL: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(tap, the values at i, the values at j) for every tap, as views."""
        length = x_BCL.shape[-1]
        for tap, shift in enumerate(self.shifts):
            yield tap, x_BCL[..., : length - shift], x_BCL[..., shift:]


def window_kernel(features: Sequence[Tensor], weights: Sequence[Tensor], window: Window) -> Tensor:
    """The module's k(i, j) for each half tap of each pixel: BTL.

    features: one BChw for each m, a batch of 1 serves every image; weights: scalars. All of one float type.
    """
    (batch,), (height, width) = torch.broadcast_shapes(*(feature.shape[:1] for feature in features)), window.size
    flops.declare(2 * batch * height * width * len(window.shifts) * sum(feature.shape[1] for feature in features))
    return _Kernel.apply(window, batch, torch.stack(list(weights)), *features)


def window_filter(q_BChw: Tensor, kernel_BTL: Tensor, window: Window) -> Tensor:
    """K q: BChw. The kernel is window_kernel's, of the same window and float type."""
    flops.declare(2 * q_BChw.numel() * (2 * len(window.shifts) - 1))
    return _Filter.apply(q_BChw, kernel_BTL, window)


class _Kernel(Function):
    """Keeps the features alone; differences and exponentials are cheap to compute again."""

    @staticmethod
    def forward(ctx: Any, window: Window, batch: int, weights_M: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(weights_M, *features)
        ctx.window = window
        total_BTL = weights_M.new_zeros(batch, len(window.shifts), window.size[0] * (window.size[1] + window.margin))
        for weight, feature_BChw in zip(weights_M, features, strict=True):
            for tap, here, there in window.pairs(window.flat(feature_BChw)):
                _, alike = _similarity(here, there)
                total_BTL[:, tap : tap + 1, : alike.shape[-1]] += weight * alike
        return total_BTL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        window, gradient_BTL = ctx.window, gradients[0]
        weights_M, *features = ctx.saved_tensors
        to_weights, to_features = torch.zeros_like(weights_M), []
        for m, feature_BChw in enumerate(features):
            flat_BCL = window.flat(feature_BChw)
            to_flat_BCL = torch.zeros_like(flat_BCL)
            for (tap, here, there), (_, to_here, to_there) in zip(window.pairs(flat_BCL), window.pairs(to_flat_BCL), strict=True):
                differences, alike = _similarity(here, there)
                received = gradient_BTL[:, tap : tap + 1, : alike.shape[-1]]
                shared = (received.sum(0, keepdim=True) if len(alike) != len(received) else received) * alike
                to_weights[m] += shared.sum()
                differences *= shared * weights_M[m]
                to_here += differences
                to_there -= differences
            to_features.append(window.back(to_flat_BCL))
        return None, None, to_weights, *to_features


def _similarity(here_BCN: Tensor, there_BCN: Tensor) -> tuple[Tensor, Tensor]:
    """(f(j) - f(i), exp(-|f(i) - f(j)|^2 / 2) with one channel)."""
    differences_BCN = there_BCN - here_BCN
    return differences_BCN, differences_BCN.square().sum(1, keepdim=True).mul_(-0.5).exp_()


class _Filter(Function):
    """Linear in q and in the kernel; keeps both and no copy."""

    @staticmethod
    def forward(ctx: Any, q_BChw: Tensor, kernel_BTL: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(q_BChw, kernel_BTL)
        ctx.window = window
        return _filtered(q_BChw, kernel_BTL, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        q_BChw, kernel_BTL = ctx.saved_tensors
        to_q = _filtered(gradients[0], kernel_BTL, ctx.window) if ctx.needs_input_grad[0] else None
        to_kernel = _products(gradients[0], q_BChw, kernel_BTL, ctx.window) if ctx.needs_input_grad[1] else None
        return to_q, to_kernel, None


def _filtered(q_BChw: Tensor, kernel_BTL: Tensor, window: Window) -> Tensor:
    q_BCL = window.flat(q_BChw)
    total_BCL = torch.zeros_like(q_BCL)
    for (tap, here, there), (_, to_here, to_there) in zip(window.pairs(q_BCL), window.pairs(total_BCL), strict=True):
        k_B1N = kernel_BTL[:, tap : tap + 1, : here.shape[-1]]
        to_here.addcmul_(k_B1N, there)
        if tap:
            to_there.addcmul_(k_B1N, here)
    return window.back(total_BCL)


def _products(a_BChw: Tensor, b_BChw: Tensor, kernel_BTL: Tensor, window: Window) -> Tensor:
    """a(i) . b(j) + a(j) . b(i) for each half tap, the gradient of `a . (K b)` to the kernel."""
    products_BTL = torch.zeros_like(kernel_BTL)
    pairs = zip(window.pairs(window.flat(a_BChw)), window.pairs(window.flat(b_BChw)), strict=True)
    for (tap, a_here, a_there), (_, b_here, b_there) in pairs:
        sums = a_here * b_there
        if tap:
            sums.addcmul_(a_there, b_here)
        sums_BN = sums.sum(1)
        products_BTL[:, tap, : sums.shape[-1]] = sums_BN.sum(0, keepdim=True) if len(kernel_BTL) != len(sums_BN) else sums_BN
    return products_BTL
