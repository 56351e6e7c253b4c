"""E-CRF: features exchange messages with their neighbours and with their superpixel before the classifier.

Zhu et al.: E-CRF: Embedded Conditional Random Field for Boundary-caused Class Weights Confusion in Semantic Segmentation (ICLR 2023).
With features F, tokens f_i = [W_I I_i ; W_p PE_i] of the image and of the positions, and G(i) a dilated 3x3 window:

    k(i, j) = f_i . f_j        mu(j) = sigmoid(w_c . F_j)        M_i = sum over j in G(i) of mu(j) k(i, j) F_j
    F*_i = F_i + superpixel_weight * (mean of F over the superpixel of i) + pairwise_weight * M_i

Where paper and released code differ we follow the code: no 1/Z_i (`normalization` has some), the centre belongs to G(i) (the paper's sum
over j != i is `centre: false`), mu depends on j alone (the paper's form is `compatibility: pair`), the weights 0.1 and 0.2 are fixed (1 in
the paper). Differently from the code, its largest superpixel counts as well.

Nine shifted multiply-adds take the place of nine copies of F (models/kernels/taps.py), and a sort that of a loop over superpixels
(models/kernels/superpixels.py). F itself is the centre tap's weight of 1, so that one operation makes F*. Of the colours' 32 channels
only the 3 x 3 matrix W_I' W_I is needed, and the positions' token is a function of x plus one of y. Small products are written as
sums, as matrix products may be TF32 on CUDA.
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from models.flops import declare
from models.kernels.superpixels import Segments, segments
from models.kernels.taps import products, weighted_sum
from models.parts.layers import at_least_float32, classifier, resize, resize_nearest, size_of, superpixel_mean

WAVES = 32  # channels that encode each coordinate


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `Embedded` and `MessagePassing` take alike. A weight of 0 leaves its half out, and out of the work."""

    embedding: int = 32  # channels of a token
    kernel_size: int = 3  # of the window G(i)
    dilation: int = 2
    compatibility: Literal["neighbour", "pair"] = "neighbour"  # mu(j), or the paper's mu(i, j)
    pairwise_weight: float = 0.2
    superpixel_weight: float = 0.1
    normalization: Literal["none", "count", "absolute"] = "none"  # M is divided by nothing, the taps, the sum of |mu k|
    centre: bool = True  # whether a pixel is a tap of its own

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0 or self.dilation < 1 or self.embedding < 1:
            found = f"{self.kernel_size}, {self.dilation} and {self.embedding}"
            raise ValueError(f"crf embedded: kernel_size must be odd, dilation and embedding positive, not {found}")
        if self.compatibility not in ("neighbour", "pair"):
            raise ValueError(f"crf embedded: compatibility must be neighbour or pair, not {self.compatibility!r}")
        if self.normalization not in ("none", "count", "absolute"):
            raise ValueError(f"crf embedded: normalization must be none, count or absolute, not {self.normalization!r}")
        if not math.isfinite(self.pairwise_weight) or not math.isfinite(self.superpixel_weight):
            raise ValueError(f"crf embedded: its weights must be finite, not {self.pairwise_weight} and {self.superpixel_weight}")
        if self.kernel_size == 1 and not self.centre:
            raise ValueError("crf embedded: without its centre a window of kernel_size 1 is empty")


class Embedded(nn.Module):
    """Message passing on the features, then dropout and the classifier."""

    more_options = Options
    extras = ()

    def __init__(self, channels: int, classes: int, *, dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.messages = MessagePassing(channels, **options)
        self.needs_superpixels = self.messages.superpixel_weight != 0
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits_BKhw, nothing more)."""
        return self.classifier(self.dropout(self.messages(features_BChw, image_B3HW, superpixels_BHW))), {}


class MessagePassing(nn.Module):
    """F* of the module's text, from released weights' names."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        chosen = Options(**options)
        self.window, self.centre = (chosen.kernel_size, chosen.dilation), chosen.centre
        self.compatibility, self.normalization = chosen.compatibility, chosen.normalization
        self.pairwise_weight, self.superpixel_weight = chosen.pairwise_weight, chosen.superpixel_weight
        self.position_conv = nn.Conv2d(2 * WAVES, chosen.embedding, 1, bias=False)
        self.image_conv = nn.Conv2d(3, chosen.embedding, 1, bias=False)
        self.compatibility_conv = nn.Conv2d(channels * (2 if self.compatibility == "pair" else 1), 1, 1, bias=False)
        # Without the pairwise half nothing reaches these: not to be waited for by gradient reduction, nor decayed.
        self.requires_grad_(self.pairwise_weight != 0)

    def forward(self, features_BCHW: Tensor, image_B3hw: Tensor, superpixels_Bhw: Tensor | None) -> Tensor:
        """features_BCHW at any stride; image in [0, 1] and superpixels (any integers) of any size. Sums are float32 under autocast.

        ValueError: superpixel_weight is not 0, and superpixels are missing or of another number of images.
        """
        labels_BHW = None
        if self.superpixel_weight != 0:
            if superpixels_Bhw is None:
                raise ValueError("crf embedded needs superpixels: name a set of them, or set superpixel_weight: 0")
            labels_BHW = resize_nearest(superpixels_Bhw, size_of(features_BCHW))
            if labels_BHW.shape != features_BCHW.shape[:1] + features_BCHW.shape[2:]:
                sizes = f"{tuple(superpixels_Bhw.shape)} do not fit features {tuple(features_BCHW.shape)}"
                raise ValueError(f"crf embedded: superpixels {sizes}")
        with nullcontext() if features_BCHW.is_meta else torch.autocast(features_BCHW.device.type, enabled=False):
            if self.pairwise_weight != 0:
                return self.exchange(features_BCHW, image_B3hw, labels_BHW)
            if labels_BHW is None:
                return features_BCHW
            precise_BCHW = at_least_float32(features_BCHW)
            return (precise_BCHW + self.superpixel_weight * superpixel_mean(precise_BCHW, labels_BHW)).to(features_BCHW.dtype)

    def exchange(self, features_BCHW: Tensor, image_B3hw: Tensor, labels_BHW: Tensor | None) -> Tensor:
        """F*, in one operation on F."""
        weights_BTHW = self.kernel(image_B3hw, features_BCHW) * self.compatibilities(features_BCHW)
        taps = weights_BTHW.shape[1]
        own_T11 = (torch.arange(taps, device=weights_BTHW.device) == taps // 2)[:, None, None]
        if not self.centre:
            weights_BTHW = weights_BTHW * ~own_T11
        if self.normalization == "absolute":
            # The sum is 0 where sigmoids underflow; its square, by which the gradient divides, must not.
            smallest = math.sqrt(torch.finfo(weights_BTHW.dtype).tiny)
            weights_BTHW = weights_BTHW / weights_BTHW.abs().sum(1, keepdim=True).clamp(min=smallest)
        scale = self.pairwise_weight / (taps - (not self.centre) if self.normalization == "count" else 1)
        found = None
        if labels_BHW is not None:
            index_BN, order_BN, starts_BM, shares_BS = segments(labels_BHW)
            found = Segments(index_BN, order_BN, starts_BM, self.superpixel_weight * shares_BS)
        declare(2 * taps * features_BCHW.numel())
        return weighted_sum(features_BCHW, own_T11 + scale * weights_BTHW, *self.window, found)

    def kernel(self, image_B3hw: Tensor, features_BCHW: Tensor) -> Tensor:
        """k(i, j) for each tap j of each pixel i: BTHW. Its halves add up; that of the positions is the same in every image."""
        place_1EHW = self.places(features_BCHW)
        colour_B3HW = resize(image_B3hw.to(place_1EHW.dtype), size_of(features_BCHW))
        weight_E3 = at_least_float32(self.image_conv.weight).flatten(1)
        metric_33 = (weight_E3[:, :, None] * weight_E3[:, None, :]).sum(0)
        measured_B3HW = (metric_33[:, :, None, None] * colour_B3HW[:, None]).sum(2)
        declare(2 * self.window[0] ** 2 * (place_1EHW.numel() + colour_B3HW.numel()) + 2 * 3 * colour_B3HW.numel())
        return products(measured_B3HW, colour_B3HW, *self.window) + products(place_1EHW, place_1EHW, *self.window)

    def places(self, features_BCHW: Tensor) -> Tensor:
        """W_p PE of each pixel, 1EHW in float32 at least: its channels are first those of x, then those of y."""
        weights = at_least_float32(self.position_conv.weight).flatten(1).chunk(2, dim=1)
        x_EW, y_EH = (
            (weight_EC[:, :, None] * waves(length, weight_EC)).sum(1)
            for weight_EC, length in zip(weights, reversed(size_of(features_BCHW)), strict=True)
        )
        return (x_EW[:, None, :] + y_EH[:, :, None])[None]

    def compatibilities(self, features_BCHW: Tensor) -> Tensor:
        """mu(j), or mu(i, j), for each tap j of each pixel i: BTHW."""
        weight_OC = at_least_float32(self.compatibility_conv.weight).view(-1, features_BCHW.shape[1])
        scores_BOHW = _Scores.apply(features_BCHW, weight_OC)
        if features_BCHW.is_cuda:  # elsewhere it is a convolution, which is counted
            declare(2 * scores_BOHW.shape[1] * features_BCHW.numel())
        if self.compatibility == "neighbour":
            return neighbours(torch.sigmoid(scores_BOHW), *self.window)
        own_B1HW, other_B1HW = scores_BOHW.chunk(2, dim=1)
        return torch.sigmoid(own_B1HW + neighbours(other_B1HW, *self.window))


def waves(length: int, like: Tensor) -> Tensor:
    """Sines and cosines, interleaved, of the places 0, 1, ... length - 1 in whole pixels of the map: 32, length."""
    steps = torch.arange(0, WAVES, 2, device=like.device, dtype=like.dtype)
    frequencies = torch.exp(steps * (-math.log(10000.0) / WAVES))
    angles = frequencies[:, None] * torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)


def neighbours(map_B1HW: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The values of a one-channel map at each pixel's taps, 0 outside: BTHW."""
    taps_BTN = F.unfold(map_B1HW, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2))
    return taps_BTN.unflatten(-1, map_B1HW.shape[-2:])


class _Scores(Function):
    """A 1x1 convolution to one or two channels in float32: of half precision nothing but the features themselves is kept."""

    @staticmethod
    def forward(ctx: Any, features_BCHW: Tensor, weight_OC: Tensor) -> Tensor:
        ctx.save_for_backward(features_BCHW, weight_OC)
        if not features_BCHW.is_cuda:
            return F.conv2d(features_BCHW.to(weight_OC.dtype), weight_OC[:, :, None, None])
        return torch.stack([(features_BCHW * weight_C[:, None, None]).sum(1) for weight_C in weight_OC], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features_BCHW, weight_OC = ctx.saved_tensors
        gradient_BOHW = gradients[0]
        to_features = to_weight = None
        if ctx.needs_input_grad[0]:
            shares = [gradient_BOHW[:, index, None] * weight_C[:, None, None] for index, weight_C in enumerate(weight_OC)]
            to_features = functools.reduce(torch.add, shares).to(features_BCHW.dtype)
        if ctx.needs_input_grad[1] and features_BCHW.is_cuda:
            to_weight = torch.stack([(features_BCHW * part_BHW[:, None]).sum((0, 2, 3)) for part_BHW in gradient_BOHW.unbind(1)])
        elif ctx.needs_input_grad[1]:
            features_BNC = features_BCHW.to(gradient_BOHW.dtype).flatten(2).transpose(1, 2)
            to_weight = (gradient_BOHW.flatten(2) @ features_BNC).sum(0)
        return to_features, to_weight
