"""The plain form of E-CRF's messages (models/crf/embedded.py, which has the equations)."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.crf.embedded import MessagePassing
from models.parts.layers import size_of


class PlainMessagePassing(nn.Module):
    """The window as shifted maps, superpixels as sums into one slot for each pixel: there can be no more superpixels than pixels."""

    def __init__(self, source: MessagePassing) -> None:
        super().__init__()
        self.source = source

    def forward(self, features_BCHW: Tensor, image_B3hw: Tensor, superpixels_Bhw: Tensor | None) -> Tensor:
        """F*, BCHW."""
        source, total_BCHW = self.source, features_BCHW
        if source.pairwise_weight != 0:
            total_BCHW = total_BCHW + self.received(features_BCHW, image_B3hw)
        if source.superpixel_weight != 0:
            if superpixels_Bhw is None:
                raise ValueError("crf embedded needs superpixels")
            labels_BHW = nearest(superpixels_Bhw, features_BCHW)
            total_BCHW = total_BCHW + source.superpixel_weight * superpixel_means(features_BCHW, labels_BHW)
        return total_BCHW

    def received(self, features_BCHW: Tensor, image_B3hw: Tensor) -> Tensor:
        """pairwise_weight * M."""
        source = self.source
        weights_BTHW = self.kernel(features_BCHW, image_B3hw) * self.compatibilities(features_BCHW)
        taps = source.window[0] ** 2
        if source.normalization == "absolute":
            counted = [weights_BTHW[:, t].abs() for t in range(taps) if source.centre or t != taps // 2]
            smallest = math.sqrt(torch.finfo(weights_BTHW.dtype).tiny)
            weights_BTHW = weights_BTHW / torch.stack(counted).sum(0)[:, None].clamp(min=smallest)
        scale = source.pairwise_weight / (taps - (not source.centre) if source.normalization == "count" else 1)
        total_BCHW = torch.zeros_like(features_BCHW)
        for tap, there_BCHW in enumerate(shifted(features_BCHW, *source.window)):
            if source.centre or tap != taps // 2:
                total_BCHW = total_BCHW + weights_BTHW[:, tap, None] * there_BCHW
        return scale * total_BCHW

    def kernel(self, features_BCHW: Tensor, image_B3hw: Tensor) -> Tensor:
        """k(i, j) for each tap: BTHW."""
        source, place_1EHW = self.source, self.source.places(features_BCHW)
        colour_B3HW = F.interpolate(image_B3hw, size_of(features_BCHW), mode="bilinear")
        weight_E3 = source.image_conv.weight.flatten(1)
        metric_33 = (weight_E3[:, :, None] * weight_E3[:, None, :]).sum(0)
        measured_B3HW = (metric_33[:, :, None, None] * colour_B3HW[:, None]).sum(2)
        colours = zip(shifted(colour_B3HW, *source.window), shifted(place_1EHW, *source.window), strict=True)
        parts = [(measured_B3HW * colour).sum(1) + (place_1EHW * place).sum(1) for colour, place in colours]
        return torch.stack(parts, dim=1)

    def compatibilities(self, features_BCHW: Tensor) -> Tensor:
        """mu(j), or mu(i, j), for each tap: BTHW."""
        source, channels = self.source, features_BCHW.shape[1]
        scores_BOHW = F.conv2d(features_BCHW, source.compatibility_conv.weight.view(-1, channels, 1, 1))
        if source.compatibility == "neighbour":
            return torch.cat(list(shifted(scores_BOHW.sigmoid(), *source.window)), dim=1)
        own_B1HW, other_B1HW = scores_BOHW[:, :1], scores_BOHW[:, 1:]
        return torch.sigmoid(own_B1HW + torch.cat(list(shifted(other_B1HW, *source.window)), dim=1))


def shifted(x_BCHW: Tensor, kernel_size: int, dilation: int) -> Iterator[Tensor]:
    """The map as each tap of a window finds it, 0 outside: BCHW, tap by tap."""
    height, width = size_of(x_BCHW)
    margin = dilation * (kernel_size // 2)
    wide_BCHW = F.pad(x_BCHW, (margin, margin, margin, margin))
    for tap in range(kernel_size**2):
        top, left = dilation * (tap // kernel_size), dilation * (tap % kernel_size)
        yield wide_BCHW[:, :, top : top + height, left : left + width]


def nearest(labels_Bhw: Tensor, like_BCHW: Tensor) -> Tensor:
    """`layers.resize_nearest` to the size of another map, without its branch on the size."""
    for axis, target in zip((1, 2), size_of(like_BCHW), strict=True):
        source = labels_Bhw.shape[axis]
        steps = torch.arange(target, device=labels_Bhw.device, dtype=torch.float32)
        index = (steps * (source / target)).floor().long().clamp(max=source - 1)
        labels_Bhw = labels_Bhw.index_select(axis, index)
    return labels_Bhw


def superpixel_means(features_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Sums over superpixels divided by their pixels + 1e-5, at each of their pixels; 0 where the label is negative: BCHW."""
    labels_BN = labels_BHW.flatten(1).clamp(min=-1)
    sorted_BN, order_BN = labels_BN.sort(dim=1)
    # A superpixel is a run of equal labels; it is numbered by the runs before it, so that any integers are labels.
    runs_BN = F.pad((sorted_BN[:, 1:] != sorted_BN[:, :-1]).long(), (1, 0)).cumsum(1)
    index_BN = torch.zeros_like(runs_BN).scatter(1, order_BN, runs_BN)
    real_B1N = (labels_BN >= 0)[:, None].to(features_BCHW.dtype)
    values_BCN = features_BCHW.flatten(2)
    index_BCN = index_BN[:, None].expand_as(values_BCN)
    sums_BCN = torch.zeros_like(values_BCN).scatter_add(2, index_BCN, values_BCN)
    counts_B1N = torch.zeros_like(real_B1N).scatter_add(2, index_BN[:, None], torch.ones_like(real_B1N))
    means_BCN = (sums_BCN / (counts_B1N + 1e-5)).gather(2, index_BCN) * real_B1N
    return means_BCN.unflatten(2, size_of(features_BCHW))
