"""Plain convolutions on the last stage.

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation (CVPR 2015), in the dilated form that later works
take as their baseline: `convs` 3x3 convolutions of one width (2, or 1 in the CAR thesis), then the classifier; no skip connections.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from models.parts.layers import End, conv_norm_act


class FCN(nn.Module):
    """The last stage through convs - 1 convolutions; the last one is the end that Projection holds."""

    extras = ()

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, *, width: int = 512, convs: int = 2) -> None:
        super().__init__()
        if width < 1 or convs < 1:
            raise ValueError(f"head fcn: width and convs must be at least 1, not {width} and {convs}")
        inputs = [channels[-1], *[width] * (convs - 1)]
        self.convs = nn.Sequential(*(conv_norm_act(a, b, 3) for a, b in pairwise(inputs)))
        self.channels = inputs[-1]
        self.stride = strides[-1]
        self.align_corners = False
        self.end = End(inputs[-1], width)
        self.smallest_batch = 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at the last stage's stride, nothing more)."""
        return self.convs(stages[-1]), {}
