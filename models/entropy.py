"""Cross-entropy over the labelled pixels of the global batch: what every loss is built on."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import Output, at_least_float32, resize, size_of
from models.reductions import share_of_mean

IGNORE = 255


def pixel_mean(logits_BKhw: Tensor, labels_BHW: Tensor, align_corners: bool = False) -> Tensor:
    """The rank's share of the mean over all labelled pixels; 0, with a gradient of zeros, where none is labelled.

    labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them, in float32 at least.
    """
    labels_BHW = labels_BHW.long()
    logits_BKHW = resize(at_least_float32(logits_BKhw), size_of(labels_BHW), align_corners)
    return share_of_mean(cross_entropy_sum(logits_BKHW, labels_BHW), (labels_BHW != IGNORE).sum())


def branches(output: Output, labels_BHW: Tensor, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`pixel_mean` of those extras that the output has (`auxiliary`, `unary`), times their weights."""
    present = {name: weight for name, weight in weights.items() if name in output.extras}
    return {name: weight * pixel_mean(output.extras[name], labels_BHW, output.align_corners) for name, weight in present.items()}


def cross_entropy_sum(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """The sum of -log softmax at the labels. On CUDA the 2-D form has no deterministic kernel, the flat one has."""
    if logits_BKHW.is_cuda and torch.are_deterministic_algorithms_enabled():
        return flat_cross_entropy_sum(logits_BKHW, labels_BHW)
    return F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=IGNORE, reduction="sum")


def flat_cross_entropy_sum(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """`cross_entropy_sum` over a list of pixels."""
    return F.cross_entropy(logits_BKHW.movedim(1, -1).flatten(0, 2), labels_BHW.flatten(), ignore_index=IGNORE, reduction="sum")
