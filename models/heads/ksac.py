"""KSAC: ASPP whose dilated convolutions share one 3x3 kernel, so that more rates cost neither parameters nor products.

Huang, Wang, Jia, He: See More Than Once - Kernel-Sharing Atrous Convolution for Semantic Segmentation (Neurocomputing 443, 2021), chapter 2
of Huang's thesis (UTS, 2022). With one kernel K and the rates R,

    P = sum over r in R of ReLU(BN_r(conv(X; K, dilation r)))      context = [pooled 1x1 of X, 1x1 of X, P]

No code was released. The paper does not say how the three are merged: here, as in ASPP, side by side and through a 1x1 convolution.
Its decoder is that of DeepLabV3+ with plain 3x3 convolutions, which is what its 20 GFLOPs amount to. Weights start as in the other heads.
The defaults are its best setting, with rates of stride 16 (at stride 8, DeepLab doubles them); its first rates were 6, 12, 18.
`shared: false` gives each rate a kernel of its own and changes nothing else.

The convolution of all rates: Z_t(p) = K_t X(p) for the nine taps t is one 1x1 convolution; y_r(p) = sum over t of Z_t(p + r * offset_t)
is additions alone, and so is the way back, G_t(p) = sum over r of g_r(p - r * offset_t), after which the 1x1 convolution has one matrix
product for the gradient of X and one for that of K. X and K are kept for it; the nine maps of Z, together about as large as X, are not.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.flops import declare
from models.kernels.shifts import TAPS, spread
from models.parts.decoder import LOW_LEVEL_STRIDE, Decoder
from models.parts.layers import End, ImagePooling, conv_norm_act


class KSAC(nn.Module):
    """Context of the last stage; the merging 1x1 (without decoder) or the decoder's second convolution is the end."""

    extras = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 256,
        rates: tuple[int, ...] = (1, 6, 12, 18, 24),
        shared: bool = True,
        pooling: bool = True,
        decoder: bool = True,
        low_level: int = 48,
    ) -> None:
        super().__init__()
        if min(width, low_level) < 1:
            raise ValueError(f"head ksac: width and low_level must be at least 1, not {width} and {low_level}")
        if not rates or min(rates) < 1 or len(set(rates)) < len(rates):
            raise ValueError(f"head ksac: rates must be different numbers from 1, at least one of them, not {list(rates)}")
        self.pool = ImagePooling(channels[-1], width) if pooling else None
        self.point = conv_norm_act(channels[-1], width, 1)
        self.pyramid = Pyramid(channels[-1], width, tuple(rates), shared)
        merge = End(width * (2 + pooling), width, 1)
        self.decoder = Decoder("ksac", channels, strides, merge, low_level, separable=False) if decoder else None
        self.end = End(width, width) if decoder else merge
        self.channels = self.end.inputs
        self.stride = LOW_LEVEL_STRIDE if decoder else strides[-1]
        self.align_corners = False
        # The pooled branch has one value per channel and image, which a batch of one image cannot normalise.
        self.smallest_batch = 2 if pooling else 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at `stride`, nothing more)."""
        x_BCHW = stages[-1]
        pooled = [] if self.pool is None else [self.pool(x_BCHW)]
        context_BCHW = torch.cat([*pooled, self.point(x_BCHW), self.pyramid(x_BCHW)], dim=1)
        return (context_BCHW if self.decoder is None else self.decoder(context_BCHW, stages)), {}


class Pyramid(nn.Module):
    """The sum over the rates of dilated 3x3 convolution, batch norm of that rate, ReLU."""

    def __init__(self, channels: int, width: int, rates: tuple[int, ...], shared: bool) -> None:
        super().__init__()
        self.rates, self.shared = rates, shared
        # A shared kernel's convolution is not called: it holds the weight.
        self.convs = nn.ModuleList(conv_norm_act(channels, width, 3, dilation=rate)[0] for rate in (rates[:1] if shared else rates))
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True)) for _ in rates)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """P of the module's text, BCHW."""
        if self.shared:
            maps = shared_atrous_conv(x_BCHW, self.convs[0].get_parameter("weight"), self.rates)
        else:
            maps = [conv(x_BCHW) for conv in self.convs]
        return reduce(torch.add, (norm(y_BCHW) for norm, y_BCHW in zip(self.norms, maps, strict=True)))


def shared_atrous_conv(x_BCHW: Tensor, weight_OC33: Tensor, rates: Sequence[int]) -> list[Tensor]:
    """For each rate the 3x3 convolution with that dilation, zero outside, without bias: a list of BOHW. Rates may exceed the map.

    In half precision each tap's product is rounded to it, their sum is float32 and rounded once more, as are the gradient's sums.
    Under autocast and in TF32 as convolutions are. ValueError: a rate below 1, another kernel than 3x3.
    """
    if any(rate < 1 for rate in rates):
        raise ValueError(f"rates must be at least 1, not {list(rates)}")
    if weight_OC33.shape[2:] != (3, 3):
        raise ValueError(f"a kernel of 3x3 is shared, not one of shape {tuple(weight_OC33.shape)}")
    outputs = len(weight_OC33)
    z_BNHW = F.conv2d(x_BCHW, weight_OC33.permute(2, 3, 0, 1).reshape(TAPS * outputs, -1, 1, 1))
    batch, _, height, width = z_BNHW.shape
    for rate in rates:  # one addition for each neighbour that lies inside
        reached = (height + 2 * max(height - rate, 0)) * (width + 2 * max(width - rate, 0))
        declare(batch * outputs * (reached - height * width))
    return spread(z_BNHW.unflatten(1, (TAPS, outputs)), list(rates))
