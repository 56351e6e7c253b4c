"""Products of float32 in float32, whatever precision the rest of a network may use.

Scaled colours reach 85 and their half squares 3600: TF32 or bfloat16 in a Gaussian's exponent flips a third of an image's labels.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, autocast is off and a product of float32 is IEEE float32 (no TF32 on CUDA, no bfloat16 on a CPU)."""
    if device.type == "meta":
        yield
        return
    settings = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # pyrefly: ignore[missing-attribute]
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        settings.fp32_precision = before


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, autocast is off on the device; the meta device has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@torch.compiler.disable
def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` of one float type in full precision, forward and backward; b has a's leading axes, a may lack them."""
    return _Product.apply(a, b)


class _Product(Function):
    """Autograd would form the gradients outside of the context, in whatever precision is set there."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        to_a, to_b = ctx.needs_input_grad
        ctx.save_for_backward(a if to_b else None, b if to_a else None)  # a fixed filter keeps nothing of what it filters
        ctx.shapes = a.shape, b.shape
        with full_precision(a.device):
            return a @ b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyrefly: ignore[bad-override]
        a, b = ctx.saved_tensors
        with full_precision(gradients[0].device):
            to_a = None if b is None else (gradients[0] @ b.mT).sum_to_size(ctx.shapes[0])
            to_b = None if a is None else (a.mT @ gradients[0]).sum_to_size(ctx.shapes[1])
        return to_a, to_b
