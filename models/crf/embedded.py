"""E-CRF: features exchange messages with their neighbours and with their superpixel before the classifier.

Zhu et al.: E-CRF: Embedded Conditional Random Field for Boundary-caused Class Weights Confusion in Semantic Segmentation (ICLR 2023).
With features F, tokens f_i = [W_I I_i ; W_p PE_i] of the image and of the positions, and G(i) a dilated 3x3 window:

    k(i, j) = f_i . f_j        mu(j) = sigmoid(w_c . F_j)        M_i = sum over j in G(i) of mu(j) k(i, j) F_j
    F*_i = F_i + superpixel_weight * (mean of F over the superpixel of i) + pairwise_weight * M_i

Where paper and released code differ we follow the code: no 1/Z_i, the centre belongs to G(i), mu depends on j alone (the paper's form is
`compatibility: pair`), the weights 0.1 and 0.2 are fixed. Differently from the code, its largest superpixel counts as well.
Nine shifted multiply-adds take the place of nine copies of F, and their gradient is written in the same two operations.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from models.layers import at_least_float32, classifier, resize, resize_nearest, size_of, superpixel_mean

WAVES = 32  # channels that encode each coordinate


class Embedded(nn.Module):
    """Message passing on the features, then dropout and the classifier. The options are MessagePassing's."""

    extras = ()

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        dropout: float = 0.1,
        embedding: int = 32,
        kernel_size: int = 3,
        dilation: int = 2,
        compatibility: Literal["neighbour", "pair"] = "neighbour",
        pairwise_weight: float = 0.2,
        superpixel_weight: float = 0.1,
        normalization: Literal["none", "count", "absolute"] = "none",
    ) -> None:
        super().__init__()
        self.messages = MessagePassing(
            channels, embedding=embedding, kernel_size=kernel_size, dilation=dilation, compatibility=compatibility,
            pairwise_weight=pairwise_weight, superpixel_weight=superpixel_weight, normalization=normalization,
        )  # fmt: skip
        self.needs_superpixels = superpixel_weight != 0
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits_BKhw, nothing more)."""
        return self.classifier(self.dropout(self.messages(features_BChw, image_B3HW, superpixels_BHW))), {}


class MessagePassing(nn.Module):
    """F* of the module's text, from released weights' names. A weight of 0 leaves its half out, and out of the work.

    normalization: M is divided by nothing, by the number of the window's taps, or by the sum of |mu k|.
    """

    def __init__(
        self,
        channels: int,
        *,
        embedding: int = 32,
        kernel_size: int = 3,
        dilation: int = 2,
        compatibility: Literal["neighbour", "pair"] = "neighbour",
        pairwise_weight: float = 0.2,
        superpixel_weight: float = 0.1,
        normalization: Literal["none", "count", "absolute"] = "none",
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0 or dilation < 1 or embedding < 1:
            raise ValueError(
                f"crf embedded: kernel_size must be odd, dilation and embedding positive, not {kernel_size}, {dilation} and {embedding}"
            )
        if compatibility not in ("neighbour", "pair"):
            raise ValueError(f"crf embedded: compatibility must be neighbour or pair, not {compatibility!r}")
        if normalization not in ("none", "count", "absolute"):
            raise ValueError(f"crf embedded: normalization must be none, count or absolute, not {normalization!r}")
        self.window = (kernel_size, dilation)
        self.compatibility, self.normalization = compatibility, normalization
        self.pairwise_weight, self.superpixel_weight = pairwise_weight, superpixel_weight
        self.position_conv = nn.Conv2d(2 * WAVES, embedding, 1, bias=False)
        self.image_conv = nn.Conv2d(3, embedding, 1, bias=False)
        self.compatibility_conv = nn.Conv2d(channels * (2 if compatibility == "pair" else 1), 1, 1, bias=False)
        # Without the pairwise half nothing reaches these: not to be waited for by gradient reduction, nor decayed.
        self.requires_grad_(pairwise_weight != 0)

    def forward(self, features_BCHW: Tensor, image_B3hw: Tensor, superpixels_Bhw: Tensor | None) -> Tensor:
        """features_BCHW at any stride; image in [0, 1] and superpixels (any integers) of any size. Sums are float32 under autocast.

        ValueError: superpixels are missing and superpixel_weight is not 0.
        """
        labels_BHW = superpixels_Bhw if self.superpixel_weight != 0 else None
        if self.superpixel_weight != 0 and labels_BHW is None:
            raise ValueError("crf embedded needs superpixels: name a set of them, or set superpixel_weight: 0")
        with torch.autocast(features_BCHW.device.type, enabled=False):
            precise_BCHW = at_least_float32(features_BCHW)
            result_BCHW = precise_BCHW
            if labels_BHW is not None:
                means_BCHW = superpixel_mean(precise_BCHW, resize_nearest(labels_BHW, size_of(features_BCHW)))
                result_BCHW = result_BCHW + self.superpixel_weight * means_BCHW
            if self.pairwise_weight != 0:
                result_BCHW = result_BCHW + self.messages(precise_BCHW, image_B3hw.to(precise_BCHW.dtype))
        return result_BCHW.to(features_BCHW.dtype)

    def messages(self, features_BCHW: Tensor, image_B3hw: Tensor) -> Tensor:
        """pairwise_weight * M, from features and image of one float type."""
        weights_BTHW = self.kernel(image_B3hw, features_BCHW) * self.compatibilities(features_BCHW)
        if self.normalization == "absolute":
            smallest = torch.finfo(weights_BTHW.dtype).tiny
            weights_BTHW = weights_BTHW / weights_BTHW.abs().sum(1, keepdim=True).clamp(min=smallest)
        scale = self.pairwise_weight / (self.window[0] ** 2 if self.normalization == "count" else 1)
        return weighted_sum(features_BCHW, weights_BTHW * scale, *self.window)

    def kernel(self, image_B3hw: Tensor, features_BCHW: Tensor) -> Tensor:
        """k(i, j) for each tap j of each pixel i: BTHW. Its halves add up; that of the positions is the same in every image."""
        size = size_of(features_BCHW)
        colour_BEHW = self.image_conv(resize(image_B3hw, size))
        place_1EHW = self.position_conv(position_encoding(size, features_BCHW))
        return products(colour_BEHW, colour_BEHW, *self.window) + products(place_1EHW, place_1EHW, *self.window)

    def compatibilities(self, features_BCHW: Tensor) -> Tensor:
        """mu(j), or mu(i, j), for each tap j of each pixel i: BTHW."""
        weight_1C11 = self.compatibility_conv.weight
        if self.compatibility == "neighbour":
            return neighbours(torch.sigmoid(F.conv2d(features_BCHW, weight_1C11)), *self.window)
        own_1C11, other_1C11 = weight_1C11.chunk(2, dim=1)
        return torch.sigmoid(F.conv2d(features_BCHW, own_1C11) + neighbours(F.conv2d(features_BCHW, other_1C11), *self.window))


def position_encoding(size: tuple[int, int], like: Tensor) -> Tensor:
    """Sines and cosines of x, then of y, interleaved, in whole pixels of the map: 1, 64, H, W."""
    height, width = size
    steps = torch.arange(0, WAVES, 2, device=like.device, dtype=like.dtype)
    frequencies = torch.exp(steps * (-math.log(10000.0) / WAVES))
    x_CW, y_CH = (_waves(torch.arange(length, device=like.device, dtype=like.dtype), frequencies) for length in (width, height))
    return torch.cat([x_CW[:, None, :].expand(-1, height, -1), y_CH[:, :, None].expand(-1, -1, width)])[None]


def _waves(places_N: Tensor, frequencies: Tensor) -> Tensor:
    angles = frequencies[:, None] * places_N
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)


def neighbours(map_B1HW: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The values of a one-channel map at each pixel's taps, 0 outside: BTHW."""
    taps_BTN = F.unfold(map_B1HW, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2))
    return taps_BTN.unflatten(-1, map_B1HW.shape[-2:])


def weighted_sum(x_BCHW: Tensor, weights_BTHW: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The sum over the taps t of weights_t(i) * x(i + offset_t), x being 0 outside: BCHW."""
    return _WeightedSum.apply(x_BCHW, weights_BTHW, kernel_size, dilation)


def products(a_BCHW: Tensor, b_BCHW: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """a(i) . b(i + offset_t) for each tap t, b being 0 outside: BTHW."""
    return _Products.apply(a_BCHW, b_BCHW, kernel_size, dilation)


class _WeightedSum(Function):
    """Linear in x and in the weights; keeps both and no copy. The gradients are the two operations again."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weights_BTHW: Tensor, kernel_size: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, weights_BTHW)
        ctx.window = kernel_size, dilation
        total_BCHW = torch.zeros_like(x_BCHW)
        for tap, here, there in _taps(x_BCHW.shape, kernel_size, dilation):
            total_BCHW[here].addcmul_(weights_BTHW[:, tap : tap + 1][here], x_BCHW[there])
        return total_BCHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_BCHW = gradients[0]
        x_BCHW, weights_BTHW = ctx.saved_tensors
        to_x = weighted_sum(gradient_BCHW, _transposed(weights_BTHW, *ctx.window), *ctx.window) if ctx.needs_input_grad[0] else None
        to_weights = products(gradient_BCHW, x_BCHW, *ctx.window) if ctx.needs_input_grad[1] else None
        return to_x, to_weights, None, None


class _Products(Function):
    """Linear in a and in b; keeps both and no copy."""

    @staticmethod
    def forward(ctx: Any, a_BCHW: Tensor, b_BCHW: Tensor, kernel_size: int, dilation: int) -> Tensor:
        ctx.save_for_backward(a_BCHW, b_BCHW)
        ctx.window = kernel_size, dilation
        batch, _, height, width = a_BCHW.shape
        products_BTHW = a_BCHW.new_zeros(batch, kernel_size**2, height, width)
        for tap, here, there in _taps(a_BCHW.shape, kernel_size, dilation):
            products_BTHW[:, tap][here[:1] + here[2:]] = (a_BCHW[here] * b_BCHW[there]).sum(1)
        return products_BTHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_BTHW = gradients[0]
        a_BCHW, b_BCHW = ctx.saved_tensors
        to_a = weighted_sum(b_BCHW, gradient_BTHW, *ctx.window) if ctx.needs_input_grad[0] else None
        to_b = weighted_sum(a_BCHW, _transposed(gradient_BTHW, *ctx.window), *ctx.window) if ctx.needs_input_grad[1] else None
        return to_a, to_b, None, None


Place = tuple[slice, slice, slice, slice]


def _taps(shape: torch.Size, kernel_size: int, dilation: int) -> list[tuple[int, Place, Place]]:
    """(tap, pixels whose neighbour lies inside, these neighbours), row by row, for each tap that reaches any."""
    height, width = shape[-2:]
    found = []
    for tap in range(kernel_size**2):
        down, right = (dilation * (step - kernel_size // 2) for step in divmod(tap, kernel_size))
        if abs(down) < height and abs(right) < width:
            (rows, rows_there), (columns, columns_there) = _overlap(height, down), _overlap(width, right)
            everything = slice(None)
            found.append((tap, (everything, everything, rows, columns), (everything, everything, rows_there, columns_there)))
    return found


def _overlap(length: int, offset: int) -> tuple[slice, slice]:
    """Places i and i + offset such that both lie in range(length)."""
    start, stop = max(0, -offset), min(length, length - offset)
    return slice(start, stop), slice(start + offset, stop + offset)


def _transposed(weights_BTHW: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The weights that send back what `weights` fetched: those of j towards i, at i."""
    turned_BTHW = torch.zeros_like(weights_BTHW)
    for tap, here, there in _taps(weights_BTHW.shape, kernel_size, dilation):
        turned_BTHW[:, tap : tap + 1][here] = weights_BTHW.flip(1)[:, tap : tap + 1][there]
    return turned_BTHW
