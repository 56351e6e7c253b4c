"""The memory of what the operations of shifts.py give, in their plain form and in Triton alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

TAPS, CENTRE = 9, 4


def layout(map_BCHW: Tensor) -> torch.memory_format:
    """channels_last where the channels are dense in memory, else contiguous."""
    return torch.channels_last if map_BCHW.stride(1) == 1 and map_BCHW.shape[1] > 1 else torch.contiguous_format


def empty_sums(taps_BTCHW: Tensor, rates: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """The memory of what `spread` gives."""
    like_BCHW = taps_BTCHW[:, CENTRE]
    return [torch.empty_like(like_BCHW, dtype=dtype, memory_format=layout(like_BCHW)) for _ in rates]


def empty_taps(map_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of what `collect` gives."""
    batch, channels, height, width = map_BCHW.shape
    shape = (batch, TAPS * channels, height, width)
    taps_BNHW = torch.empty(shape, dtype=dtype, device=map_BCHW.device, memory_format=layout(map_BCHW))
    return taps_BNHW.unflatten(1, (TAPS, channels))
