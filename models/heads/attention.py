"""Self-attention over all pixels of the last stage: the non-local baseline that class-aware regularisation is added to.

Wang et al.: Non-local Neural Networks (CVPR 2018), in the shape of Huang et al.: CAR: Class-aware Regularizations for Semantic
Segmentation (ECCV 2022). With x a 3x3 convolution of the stage,

    y_i = x_i + sum over j of softmax_j(q(x_i) . k(x_j)) v(x_j)        q, k, v 1x1 convolutions with bias, no scaling

As in the released code, q and k are convolutions of their own that start from the same values. The 3x3 convolution after it is the
end that Projection holds; `projection: linear` puts CAR's own two 1x1 convolutions in its place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parts.attention import attend
from models.parts.layers import End, conv_norm_act, size_of


class Attention(nn.Module):
    """A 3x3 convolution, then attention added to its output."""

    extras = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 512,
        key_width: int = 64,
    ) -> None:
        super().__init__()
        if min(width, key_width) < 1:
            raise ValueError(f"head attention: width and key_width must be at least 1, not {width} and {key_width}")
        self.entry = conv_norm_act(channels[-1], width, 3)
        self.attention = SelfAttention(width, key_width)
        self.channels = width
        self.stride = strides[-1]
        self.align_corners = False
        self.end = End(width, width)
        self.smallest_batch = 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at the last stage's stride, nothing more)."""
        x_BCHW = self.entry(stages[-1])
        return x_BCHW + self.attention(x_BCHW), {}


class SelfAttention(nn.Module):
    """What attention gathers for each pixel, before it is added. Memory is bounded: see models/parts/attention.py."""

    def __init__(self, width: int, key_width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Conv2d(width, key_width, 1), nn.Conv2d(width, key_width, 1), nn.Conv2d(width, width, 1)
        for conv in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        with torch.no_grad():
            self.key.weight.copy_(self.query.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW of the values."""
        query_BND, key_BND, value_BNC = (conv(x_BCHW).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value))
        return attend(query_BND, key_BND, value_BNC).transpose(1, 2).unflatten(2, size_of(x_BCHW))
