"""Channelised axial attention's gates on a map: sums along an axis, products with gates, in few copies (models/heads/caa.py).

What autograd would do with more of them: a large tensor costs a CPU more to allocate than to multiply, and a GPU its reading.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.flops import declare

CACHED = 2**18  # values that a CPU works on at a time; other devices take all


def with_sum(y_BHWC: Tensor, axis: int, gate_BHC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(y itself, to go on with; the sum of y, times the gate, over H or W in float32 at least). Of y nothing else is to be used."""
    if gate_BHC is not None:
        declare(2 * y_BHWC.numel())
    if torch.compiler.is_compiling():
        return y_BHWC, (y_BHWC if gate_BHC is None else y_BHWC * gate_BHC[:, :, None]).sum(axis, dtype=_sum_type(y_BHWC))
    return _WithSum.apply(y_BHWC, axis, gate_BHC)


def modulate(y_BHWC: Tensor, column_BHC: Tensor | None, row_BWC: Tensor | None) -> Tensor:
    """The product of y and the gates that there are: BHWC of the type of y."""
    if column_BHC is None and row_BWC is None:
        return y_BHWC
    batch, height, width, channels = y_BHWC.shape
    column_BHC = y_BHWC.new_ones(batch, height, channels, dtype=_sum_type(y_BHWC)) if column_BHC is None else column_BHC
    row_BWC = y_BHWC.new_ones(batch, width, channels, dtype=_sum_type(y_BHWC)) if row_BWC is None else row_BWC
    if torch.compiler.is_compiling():
        return (y_BHWC * column_BHC[:, :, None] * row_BWC[:, None]).to(y_BHWC.dtype)
    return _Modulated.apply(y_BHWC, column_BHC, row_BWC)


class _WithSum(Function):
    """y and its sum. The sum's gradient is added to that of y, which nobody else holds."""

    @staticmethod
    def forward(ctx: Any, y_BHWC: Tensor, axis: int, gate_BHC: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.axis = axis
        ctx.save_for_backward(None if gate_BHC is None else y_BHWC, gate_BHC)
        if gate_BHC is None:
            return y_BHWC.view_as(y_BHWC), y_BHWC.sum(axis, dtype=_sum_type(y_BHWC))
        sums_BWC = torch.zeros_like(y_BHWC[:, 0], dtype=_sum_type(y_BHWC))
        for rows in _strips(y_BHWC):
            sums_BWC += (y_BHWC[:, rows] * gate_BHC[:, rows, None].to(y_BHWC.dtype)).sum(1, dtype=sums_BWC.dtype)
        return y_BHWC.view_as(y_BHWC), sums_BWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:  # pyrefly: ignore[bad-override]
        y_BHWC, gate_BHC = ctx.saved_tensors
        to_y_BHWC, to_sums_BHWC = gradients[0], gradients[1].unsqueeze(ctx.axis).to(gradients[0].dtype)
        if gate_BHC is None:
            return to_y_BHWC.add_(to_sums_BHWC), None, None
        to_gate_BHC = torch.empty_like(gate_BHC)
        for rows in _strips(y_BHWC):
            to_gate_BHC[:, rows] = (y_BHWC[:, rows] * to_sums_BHWC).sum(2, dtype=gate_BHC.dtype)
            to_y_BHWC[:, rows].addcmul_(gate_BHC[:, rows, None].to(y_BHWC.dtype), to_sums_BHWC)
        return to_y_BHWC, None, to_gate_BHC


class _Modulated(Function):
    """y times both gates; keeps y and the gates alone."""

    @staticmethod
    def forward(ctx: Any, y_BHWC: Tensor, column_BHC: Tensor, row_BWC: Tensor) -> Tensor:
        ctx.save_for_backward(y_BHWC, column_BHC, row_BWC)
        result_BHWC = torch.empty_like(y_BHWC)
        row_B1WC = row_BWC[:, None].to(y_BHWC.dtype)
        for rows in _strips(y_BHWC):
            gated_BhWC = y_BHWC[:, rows] * column_BHC[:, rows, None].to(y_BHWC.dtype)
            torch.mul(gated_BhWC, row_B1WC, out=result_BHWC[:, rows])
        return result_BHWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyrefly: ignore[bad-override]
        y_BHWC, column_BHC, row_BWC = ctx.saved_tensors
        gradient_BHWC = gradients[0].contiguous()
        to_y_BHWC, to_column_BHC, to_row_BWC = torch.empty_like(y_BHWC), torch.empty_like(column_BHC), torch.zeros_like(row_BWC)
        row_B1WC = row_BWC[:, None].to(y_BHWC.dtype)
        for rows in _strips(y_BHWC):
            column_Bh1C = column_BHC[:, rows, None].to(y_BHWC.dtype)
            product_BhWC = gradient_BHWC[:, rows] * y_BHWC[:, rows]
            to_row_BWC += (product_BhWC * column_Bh1C).sum(1, dtype=row_BWC.dtype)
            to_column_BHC[:, rows] = product_BhWC.mul_(row_B1WC).sum(2, dtype=column_BHC.dtype)
            torch.mul(gradient_BHWC[:, rows] * row_B1WC, column_Bh1C, out=to_y_BHWC[:, rows])
        return to_y_BHWC, to_column_BHC, to_row_BWC


def _strips(y_BHWC: Tensor) -> list[slice]:
    """Rows to work on at a time: on a CPU as many as its cache holds."""
    height = y_BHWC.shape[1]
    step = max(1, CACHED * height // max(1, y_BHWC.numel())) if y_BHWC.device.type == "cpu" else max(1, height)
    return [slice(start, start + step) for start in range(0, height, step)]


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
