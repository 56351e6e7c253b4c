"""Softmax attention without scaling, as non-local networks have it, in bounded memory: shared by heads.

    y_i = sum over j of softmax_j(q_i . k_j) v_j

Logits and softmax are float32 at least, also under autocast and where TF32 is allowed: unscaled products of wide features are large,
and ten bits have no digits left of their differences. The sum over values runs in the values' own type.

Why no fused kernel: they want equal widths of keys and values, of at most 256, or fall back to the whole map (a CPU); values here are
512 wide, keys 64. Maps are small up to a few thousand pixels (71 MB for 65 x 65), so two matrix products it is; a larger map (1 GB for
128 x 128) is worked through in blocks of queries, which the backward pass computes once more instead of keeping.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.kernels.precision import product, without_autocast
from models.parts.layers import at_least_float32

LARGEST_MAP = 2**26  # entries, 256 MB in float32; forward and backward hold about four such maps at their peak


def attend(query_BND: Tensor, key_BMD: Tensor, value_BMC: Tensor) -> Tensor:
    """Each query's mean of the values, weighted by the softmax of its products with the keys: BNC of the values' type."""
    with without_autocast(value_BMC.device):
        block = max(1, LARGEST_MAP // max(1, len(key_BMD) * key_BMD.shape[1]))
        if query_BND.shape[1] <= block:
            return _attend(query_BND, key_BMD, value_BMC)
        blocks = query_BND.split(block, dim=1)
        again = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is drawn
        return torch.cat([checkpoint(_attend, part_BnD, key_BMD, value_BMC, **again) for part_BnD in blocks], dim=1)


def _attend(query_BND: Tensor, key_BMD: Tensor, value_BMC: Tensor) -> Tensor:
    return attention_map(query_BND, key_BMD).to(value_BMC.dtype) @ value_BMC


def attention_map(query_XND: Tensor, key_XMD: Tensor) -> Tensor:
    """The softmax over M of q . k, in float32 at least: XNM, X being any leading axes. To be called in `without_autocast`."""
    form = torch.matmul if query_XND.is_meta or torch.compiler.is_compiling() else product
    return form(at_least_float32(query_XND), at_least_float32(key_XMD).mT).softmax(-1)


def along_columns(maps_BWHH: Tensor, value_BHWC: Tensor) -> Tensor:
    """Each column's attention map times its values: BHWC. Both of one type; values that lie in this order are not copied."""
    if torch.compiler.is_compiling():
        return (maps_BWHH @ value_BHWC.transpose(1, 2)).transpose(1, 2).contiguous()
    return _AlongColumns.apply(maps_BWHH, value_BHWC)


class _AlongColumns(Function):
    """Matrix products that read and write columns where they lie: autograd's would turn the values, and copy them for it."""

    @staticmethod
    def forward(ctx: Any, maps_BWHH: Tensor, value_BHWC: Tensor) -> Tensor:
        ctx.save_for_backward(maps_BWHH, value_BHWC)
        return _along_columns(maps_BWHH, value_BHWC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:  # pyrefly: ignore[bad-override]
        maps_BWHH, value_BHWC = ctx.saved_tensors
        to_maps_BWHH = torch.empty_like(maps_BWHH)
        for to_maps_WHH, gradient_HWC, value_HWC in zip(to_maps_BWHH, gradients[0], value_BHWC, strict=True):
            torch.bmm(gradient_HWC.transpose(0, 1), value_HWC.permute(1, 2, 0), out=to_maps_WHH)
        return to_maps_BWHH, _along_columns(maps_BWHH.transpose(-1, -2), gradients[0])


def _along_columns(maps_BWHH: Tensor, value_BHWC: Tensor) -> Tensor:
    y_BHWC = torch.empty_like(value_BHWC, memory_format=torch.contiguous_format)
    for maps_WHH, value_HWC, y_HWC in zip(maps_BWHH, value_BHWC, y_BHWC, strict=True):
        torch.bmm(maps_WHH, value_HWC.transpose(0, 1), out=y_HWC.transpose(0, 1))
    return y_BHWC


def in_autocast(like: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    return not like.is_meta and torch.is_autocast_enabled(like.device.type)
