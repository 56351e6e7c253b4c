"""SegFormer's all-MLP decoder: every stage projected to one width, resized to the finest and fused by a 1x1 convolution.

Xie et al.: SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (NeurIPS 2021), equation 4:

    F_i = resize(Linear_i(stage_i))        F = fuse([F_4, F_3, F_2, F_1])

`fuse` is a 1x1 convolution, batch norm and ReLU, as released: the end that Projection holds. The order is the release's, so that its
weights fit. mmsegmentation's Linear_i has batch norm and ReLU as well; here it is the paper's. The width is 256 for B0 and B1, and
768 for the larger ones, in the paper; mmsegmentation takes 256 for all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parts.layers import End, from_stride_4, resize, size_of


class SegFormer(nn.Module):
    """All stages from stride 4 on, side by side at the finest one's size."""

    extras = ()

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, *, width: int = 256) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"head segformer: width must be at least 1, not {width}")
        self.stages = from_stride_4(strides)
        self.linear = nn.ModuleList(nn.Conv2d(channels[index], width, 1) for index in self.stages)
        self.channels = width * len(self.stages)
        self.stride = strides[self.stages[0]]
        self.align_corners = False
        self.end = End(self.channels, width, 1)
        self.smallest_batch = 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at `stride`, the coarsest stage's channels first; nothing more)."""
        size = size_of(stages[self.stages[0]])
        resized = [resize(linear(stages[index]), size) for index, linear in zip(self.stages, self.linear, strict=True)]
        return torch.cat(resized[::-1], dim=1), {}
