"""Means over the superpixels of each image, for any integer labels, without waiting for the GPU.

The labels of an image are sorted; a superpixel is a run of equal ones. All sizes are the image's number of pixels, so that no count
has to come back from the device. The sums' order is fixed on a CPU and in Triton; the plain form on CUDA adds by atomics, unless
torch.use_deterministic_algorithms is set.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.kernels import use_triton

CHANNELS = 64  # of one thread's share of a block on a CPU: its sums and pixels stay in the cache


class Segments(NamedTuple):
    """The superpixels of each image, numbered from 0 by label. N pixels of an image, so at most S = N superpixels."""

    index_BN: Tensor  # the superpixel of each pixel
    order_BN: Tensor  # the pixels, superpixel by superpixel
    starts_BM: Tensor  # where each superpixel begins in that order, M = N + 1; N for those that do not exist
    shares_BS: Tensor  # 1 / (pixels + 1e-5) in float64; 0 where the label is negative, and for those that do not exist


def segments(labels_BHW: Tensor) -> Segments:
    """The superpixels of maps of any integers."""
    labels_BN = labels_BHW.flatten(1).long().clamp(min=-1)
    sorted_BN, order_BN = labels_BN.sort(dim=1, stable=True)
    runs_BN = torch.zeros_like(sorted_BN)
    runs_BN[:, 1:] = (sorted_BN[:, 1:] != sorted_BN[:, :-1]).cumsum(1)
    index_BN = torch.empty_like(runs_BN).scatter_(1, order_BN, runs_BN)
    numbers_BM = torch.arange(labels_BN.shape[1] + 1, device=labels_BN.device).repeat(len(labels_BN), 1)
    starts_BM = torch.searchsorted(runs_BN, numbers_BM)
    counts_BS = starts_BM.diff(dim=1)
    first_BS = sorted_BN.gather(1, starts_BM[:, :-1].clamp(max=labels_BN.shape[1] - 1))
    return Segments(index_BN, order_BN, starts_BM, ((counts_BS > 0) & (first_BS >= 0)) / (counts_BS.double() + 1e-5))


def segment_means(x_BCHW: Tensor, segments: Segments) -> Tensor:
    """The share of each pixel's superpixel times the sum of x over it: BCHW of x's type, summed in float32 at least."""
    return _segment_means(x_BCHW.flatten(2), list(segments)).view(x_BCHW.shape)


@torch.library.custom_op("segmentation::segment_means", mutates_args=())
def _segment_means(x_BCN: Tensor, segments: Sequence[Tensor]) -> Tensor:
    total_BCN = torch.zeros_like(x_BCN, dtype=torch.promote_types(x_BCN.dtype, torch.float32))
    add_segment_means(total_BCN, x_BCN, segments)
    return total_BCN.to(x_BCN.dtype)


@_segment_means.register_fake
def _(x_BCN: Tensor, segments: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(x_BCN)


def _keep(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor]], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1])


def _transposed(ctx: Any, gradient_BCN: Tensor) -> tuple[Tensor, list[None]]:
    return _segment_means(gradient_BCN, list(ctx.saved_tensors)), [None] * len(
        Segments._fields
    )  # one share for a whole superpixel: its own transpose


_segment_means.register_autograd(_transposed, setup_context=_keep)


def add_segment_means(total_BCN: Tensor, x_BCN: Tensor, segments: Sequence[Tensor]) -> None:
    """segment_means, added to a total of float32 or float64."""
    index_BN, _, _, shares_BS = segments
    tables = segment_table(x_BCN, segments) if x_BCN.is_cuda else None
    for image, (total_CN, x_CN, index_N) in enumerate(zip(total_BCN, x_BCN, index_BN, strict=True)):
        if tables is not None:
            total_CN.T.add_(tables[image].index_select(0, index_N))
            continue
        shares_S = shares_BS[image, : int(index_N.max()) + 1].to(total_BCN.dtype)
        if x_CN.stride(0) == 1:
            table_SC = _table(x_CN, index_N, shares_S)
            total_CN.T.add_(table_SC.index_select(0, index_N))
        else:
            _add_by_channels(total_CN, x_CN, index_N, shares_S)


def segment_table(x_BCN: Tensor, segments: Sequence[Tensor]) -> Tensor:
    """Share times sum of each superpixel, BSC, for tensors on CUDA; what stands for superpixels that do not exist is undefined."""
    if use_triton(x_BCN):
        from models.kernels.messages import segment_table as fused

        return fused(x_BCN, segments)
    index_BN, _, _, shares_BS = segments
    total = torch.promote_types(x_BCN.dtype, torch.float32)
    return torch.stack([_table(x_CN.to(total), *rest) for x_CN, *rest in zip(x_BCN, index_BN, shares_BS.to(total), strict=True)])


def _table(x_CN: Tensor, index_N: Tensor, shares_S: Tensor) -> Tensor:
    """The same for one image: SC. Rows of channels are added up."""
    sums_SC = x_CN.new_zeros(len(shares_S), len(x_CN), dtype=shares_S.dtype)
    return sums_SC.index_add_(0, index_N, x_CN.T.to(shares_S.dtype)).mul_(shares_S[:, None])


def _add_by_channels(total_CN: Tensor, x_CN: Tensor, index_N: Tensor, shares_S: Tensor) -> None:
    """For one image whose pixels lie side by side, some channels at a time."""
    channels = CHANNELS * torch.get_num_threads()
    for total_cN, x_cN in zip(total_CN.split(channels), x_CN.split(channels), strict=True):
        index_cN = index_N.expand(len(x_cN), -1)
        sums_cS = total_cN.new_zeros(len(x_cN), len(shares_S)).scatter_add_(1, index_cN, x_cN.to(total_cN.dtype))
        total_cN.add_(sums_cS.mul_(shares_S).index_select(1, index_N))
