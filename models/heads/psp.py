"""Pyramid pooling on the last stage.

Zhao et al.: Pyramid Scene Parsing Network (CVPR 2017). Means over 1 x 1, 2 x 2, 3 x 3 and 6 x 6 regions, each through a 1x1 convolution
and back to the stage's size, beside the stage itself; a 3x3 bottleneck, which is the end that Projection holds. Widths are those
of the commonly published baseline: 512 for each region size, and for the bottleneck.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.parts.layers import End, PyramidPooling


class PSP(nn.Module):
    """The last stage beside its pooled versions."""

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
        self.pooling = PyramidPooling(channels[-1], width, bins)
        self.channels = self.pooling.channels
        self.stride = strides[-1]
        self.align_corners = False
        self.end = End(self.channels, width)
        self.smallest_batch = self.pooling.smallest_batch

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at the last stage's stride, the stage's own channels first; nothing more)."""
        return self.pooling(stages[-1]), {}
