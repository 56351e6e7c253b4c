"""Mean cross-entropy over the labelled pixels of the global batch, with the auxiliary branch's and the unary's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import Output, at_least_float32, resize, size_of
from models.reductions import share_of_mean

IGNORE = 255


class CrossEntropy:
    """`cross_entropy`, and where the output has them `auxiliary` (times auxiliary_weight) and `unary` (times unary_weight)."""

    def __init__(self, classes: int, auxiliary_weight: float, *, unary_weight: float = 1.0) -> None:
        if unary_weight < 0:
            raise ValueError(f"loss cross_entropy: unary_weight must not be negative, it is {unary_weight}")
        self.weights = {"auxiliary": auxiliary_weight, "unary": unary_weight}

    def __call__(self, output: Output, labels_BHW: Tensor) -> dict[str, Tensor]:
        """The terms. labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them."""
        terms = {"cross_entropy": pixel_mean(output.logits_BKhw, labels_BHW, output.align_corners)}
        for name, weight in self.weights.items():
            if name in output.extras:
                terms[name] = weight * pixel_mean(output.extras[name], labels_BHW, output.align_corners)
        return terms


def pixel_mean(logits_BKhw: Tensor, labels_BHW: Tensor, align_corners: bool = False) -> Tensor:
    """The rank's share of the mean over all labelled pixels; 0, with a gradient of zeros, where none is labelled."""
    labels_BHW = labels_BHW.long()
    logits_BKHW = resize(at_least_float32(logits_BKhw), size_of(labels_BHW), align_corners)
    return share_of_mean(cross_entropy_sum(logits_BKHW, labels_BHW), (labels_BHW != IGNORE).sum())


def cross_entropy_sum(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """The sum of -log softmax at the labels. On CUDA the 2-D form has no deterministic kernel, the flat one has."""
    if logits_BKHW.is_cuda and torch.are_deterministic_algorithms_enabled():
        return flat_cross_entropy_sum(logits_BKHW, labels_BHW)
    return F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=IGNORE, reduction="sum")


def flat_cross_entropy_sum(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """`cross_entropy_sum` over a list of pixels."""
    return F.cross_entropy(logits_BKHW.movedim(1, -1).flatten(0, 2), labels_BHW.flatten(), ignore_index=IGNORE, reduction="sum")
