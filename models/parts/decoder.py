"""DeepLabV3+'s decoder: context upsampled to stride 4 and refined with the backbone's stage there.

Chen et al.: Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation (ECCV 2018). The second of its 3x3
convolutions is the head's end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parts.layers import End, conv_norm_act, resize, size_of

LOW_LEVEL_STRIDE = 4


class Decoder(nn.Module):
    """The bottleneck, upsampled and joined with a 1x1 of the low-level stage, through a 3x3 convolution.

    head: its name, for the error where there is no stage of stride 4; low_level: the 1x1's channels.
    """

    def __init__(
        self, head: str, channels: Sequence[int], strides: Sequence[int], bottleneck: End, low_level: int, separable: bool
    ) -> None:
        super().__init__()
        if LOW_LEVEL_STRIDE not in strides:
            raise ValueError(f"head {head}: its decoder needs a stage of stride 4, the backbone has {list(strides)}; set decoder: false")
        self.stage = len(strides) - 1 - list(reversed(strides)).index(LOW_LEVEL_STRIDE)
        self.bottleneck = conv_norm_act(bottleneck.inputs, bottleneck.outputs, bottleneck.kernel)
        self.low_level = conv_norm_act(channels[self.stage], low_level, 1)
        self.refine = conv_norm_act(bottleneck.outputs + low_level, bottleneck.outputs, 3, separable=separable)

    def forward(self, context_BCHW: Tensor, stages: list[Tensor]) -> Tensor:
        """Features at stride 4."""
        low_BChw = self.low_level(stages[self.stage])
        up_BChw = resize(self.bottleneck(context_BCHW), size_of(low_BChw))
        return self.refine(torch.cat([up_BChw, low_BChw], dim=1))
