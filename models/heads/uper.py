"""UPerNet: pyramid pooling on the last stage, a feature pyramid down to stride 4, all levels fused.

Xiao et al.: Unified Perceptual Parsing for Scene Understanding (ECCV 2018). With L_i the 1x1 convolution of stage i and P the pyramid
pooling followed by a 3x3 convolution,

    T_4 = P(stage_4)        T_i = L_i(stage_i) + resize(T_{i+1})        F = fuse([C_1(T_1), C_2(T_2), C_3(T_3), T_4])

all convolutions (C_i and `fuse` 3x3) with batch norm and ReLU, of one width, as in the released code and mmsegmentation's. `fuse` is
the end that Projection holds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parts.layers import End, PyramidPooling, conv_norm_act, from_stride_4, resize, size_of


class UPer(nn.Module):
    """The levels side by side at the finest one's size."""

    extras = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 512,
        bins: tuple[int, ...] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.stages = from_stride_4(strides)
        *lower, top = self.stages
        self.pooling = PyramidPooling(channels[top], width, bins)
        self.bottleneck = conv_norm_act(self.pooling.channels, width, 3)
        self.lateral = nn.ModuleList(conv_norm_act(channels[index], width, 1) for index in lower)
        self.smooth = nn.ModuleList(conv_norm_act(width, width, 3) for _ in lower)
        self.channels = width * len(self.stages)
        self.stride = strides[self.stages[0]]
        self.align_corners = False
        self.end = End(self.channels, width)
        self.smallest_batch = self.pooling.smallest_batch

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at `stride`, the finest level's channels first; nothing more)."""
        level_BCHW = self.bottleneck(self.pooling(stages[self.stages[-1]]))
        levels = [level_BCHW]
        for index, lateral, smooth in zip(self.stages[-2::-1], reversed(self.lateral), reversed(self.smooth), strict=True):
            side_BCHW = lateral(stages[index])
            level_BCHW = side_BCHW + resize(level_BCHW, size_of(side_BCHW))
            levels.insert(0, smooth(level_BCHW))
        size = size_of(levels[0])
        return torch.cat([resize(level_BCHW, size) for level_BCHW in levels], dim=1), {}
