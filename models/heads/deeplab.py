"""Atrous spatial pyramid pooling, with or without DeepLabV3+'s decoder.

Chen et al.: Rethinking Atrous Convolution for Semantic Image Segmentation (V3, 2017); Encoder-Decoder with Atrous Separable
Convolution (V3+, ECCV 2018). Shapes are those of the commonly published baseline: image pooling, a
1x1 and one 3x3 convolution per rate, concatenated; a plain 3x3 bottleneck; upsampled to stride 4, joined with a 1x1 of the low-level
stage, two 3x3 convolutions. V3+ is the default; V3 is `separable: false, decoder: false`; plain ASPP also `pooling: false`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.parts.decoder import LOW_LEVEL_STRIDE, Decoder
from models.parts.layers import ASPP, End


class DeepLab(nn.Module):
    """ASPP on the last stage; the bottleneck (without decoder) or the decoder's second convolution is the end."""

    extras = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 512,
        rates: tuple[int, ...] = (12, 24, 36),
        separable: bool = True,
        decoder: bool = True,
        low_level: int = 48,
        pooling: bool = True,
    ) -> None:
        super().__init__()
        if min(width, low_level, *rates) < 1:
            raise ValueError("head deeplab: width, low_level and rates must be at least 1")
        self.aspp = ASPP(channels[-1], width, tuple(rates), separable, pooling)
        bottleneck = End(self.aspp.channels, width)
        self.decoder = Decoder("deeplab", channels, strides, bottleneck, low_level, separable) if decoder else None
        self.end = End(width, width, 3, separable) if decoder else bottleneck
        self.channels = self.end.inputs
        self.stride = LOW_LEVEL_STRIDE if decoder else strides[-1]
        self.align_corners = False
        # The pooled branch has one value per channel and image, which a batch of one image cannot normalise.
        self.smallest_batch = 2 if pooling else 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at `stride`, nothing more)."""
        context_BCHW = self.aspp(stages[-1])
        return (context_BCHW if self.decoder is None else self.decoder(context_BCHW, stages)), {}
