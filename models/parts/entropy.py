"""Cross-entropy over the labelled pixels of the global batch: what every loss is built on.

Online hard example mining (OHEM; Shrivastava et al., CVPR 2016) in the form of Li et al.: Improving Semantic Segmentation via Decoupled
Body and Edge Supervision (ECCV 2020). With p_i the probability of pixel i's label and n = min_kept, an image's loss is

    mean of -log p_i over its labelled pixels with p_i <= max(threshold, the n-th smallest p of the image)

and over all of them where fewer than n are labelled. The released code has one image per GPU; ours is a mean over the images.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts.layers import Output, at_least_float32, must_be_deterministic, resize, size_of
from models.parts.reductions import all_sum, share_of_mean, world_size

IGNORE = 255


class Entropy:
    """The terms `cross_entropy`, `auxiliary` and `unary` of a loss, with its options; `loss` is the name that errors give.

    class_weights: a factor for each class, in every term; the mean is then weighted. ohem_threshold: the hard pixels of the final
    logits alone; None for all pixels.
    """

    def __init__(
        self,
        loss: str,
        classes: int,
        auxiliary_weight: float,
        unary_weight: float,
        class_weights: Sequence[float] | None = None,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 0,
    ) -> None:
        check_weights(loss, {"unary_weight": unary_weight})
        if class_weights is not None:
            if len(class_weights) != classes:
                raise ValueError(f"loss {loss}: class_weights has {len(class_weights)} values, there are {classes} classes")
            if not all(0 <= weight < math.inf for weight in class_weights) or not any(class_weights):
                raise ValueError(f"loss {loss}: class_weights must be finite, not negative and not all 0, not {list(class_weights)}")
        if ohem_threshold is not None and not 0 <= ohem_threshold <= 1:
            raise ValueError(f"loss {loss}: ohem_threshold must be null or in [0, 1], not {ohem_threshold}")
        if ohem_min_kept < 0:
            raise ValueError(f"loss {loss}: ohem_min_kept must not be negative, it is {ohem_min_kept}")
        self.weights = {"auxiliary": auxiliary_weight, "unary": unary_weight}
        self.class_weights, self.hard = class_weights, (ohem_threshold, ohem_min_kept)

    def __call__(self, output: Output, labels_BHW: Tensor) -> dict[str, Tensor]:
        """The terms, weighted. labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them."""
        threshold, min_kept = self.hard
        if threshold is None:
            final = pixel_mean(output.logits_BKhw, labels_BHW, output.align_corners, self.class_weights)
        else:
            logits_BKHW = resize(at_least_float32(output.logits_BKhw), size_of(labels_BHW), output.align_corners)
            final = ohem_cross_entropy(logits_BKHW, labels_BHW, threshold=threshold, min_kept=min_kept, class_weights=self.class_weights)
        return {"cross_entropy": final} | branches(output, labels_BHW, self.weights, self.class_weights)


def check_weights(loss: str, weights: Mapping[str, float]) -> None:
    """ValueError for a weight that is negative or not finite."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"loss {loss}: {name} must be finite and not negative, not {weight}")


def pixel_mean(
    logits_BKhw: Tensor, labels_BHW: Tensor, align_corners: bool = False, class_weights: Sequence[float] | None = None
) -> Tensor:
    """The rank's share of the mean over all labelled pixels; 0, with a gradient of zeros, where none is labelled.

    labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them, in float32 at least.
    class_weights: the mean is weighted by those of the pixels' labels, as torch's.
    """
    labels_BHW = labels_BHW.long()
    logits_BKHW = resize(at_least_float32(logits_BKhw), size_of(labels_BHW), align_corners)
    if class_weights is None:
        return share_of_mean(cross_entropy_sum(logits_BKHW, labels_BHW), (labels_BHW != IGNORE).sum())
    weights_K = logits_BKHW.new_tensor(class_weights)
    total, weight = cross_entropy_sum(logits_BKHW, labels_BHW, weights_K), label_weights(labels_BHW, weights_K).sum()
    return total * world_size() / all_sum(weight).clamp(min=torch.finfo(weight.dtype).tiny)


def branches(
    output: Output, labels_BHW: Tensor, weights: Mapping[str, float], class_weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """`pixel_mean` of those extras that the output has (`auxiliary`, `unary`), times their weights."""
    present = {name: weight for name, weight in weights.items() if name in output.extras}
    return {
        name: weight * pixel_mean(output.extras[name], labels_BHW, output.align_corners, class_weights)
        for name, weight in present.items()
    }  # fmt: skip


def label_weights(labels_BHW: Tensor, weights_K: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """The weight of each pixel's class, 0 where it is ignored."""
    labelled_BHW = labels_BHW != ignore_index
    return weights_K[labels_BHW.where(labelled_BHW, 0)] * labelled_BHW


def cross_entropy_sum(logits_BKHW: Tensor, labels_BHW: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """The sum of -log softmax at the labels. On CUDA the 2-D form has no deterministic kernel, the flat one has."""
    if must_be_deterministic(logits_BKHW):
        return flat_cross_entropy_sum(logits_BKHW, labels_BHW, weights_K)
    return F.cross_entropy(logits_BKHW, labels_BHW, weights_K, ignore_index=IGNORE, reduction="sum")


def flat_cross_entropy_sum(logits_BKHW: Tensor, labels_BHW: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """`cross_entropy_sum` over a list of pixels."""
    return F.cross_entropy(*flat(logits_BKHW, labels_BHW), weights_K, ignore_index=IGNORE, reduction="sum")


def cross_entropy_map(logits_BKHW: Tensor, labels_BHW: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """-log softmax at each pixel's label, 0 where it is ignored: BHW."""
    if must_be_deterministic(logits_BKHW):
        entropy_N = F.cross_entropy(*flat(logits_BKHW, labels_BHW), ignore_index=ignore_index, reduction="none")
        return entropy_N.view(labels_BHW.shape)
    return F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="none")


def flat(logits_BKHW: Tensor, labels_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """(logits_NK, labels_N) of all pixels."""
    return logits_BKHW.movedim(1, -1).flatten(0, 2), labels_BHW.flatten()


def ohem_cross_entropy(
    logits_BKHW: Tensor,
    labels_BHW: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int,
    ignore_index: int = IGNORE,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """The rank's share of the mean over the images of the loss in the module's text; an image without labelled pixels is a 0.

    logits of the labels' size; class_weights: each image's mean is weighted by those of its labels.
    """
    labels_BHW = labels_BHW.long()
    logits_BKHW = at_least_float32(logits_BKHW)
    labelled_BHW = labels_BHW != ignore_index
    probability_BHW = label_probability(logits_BKHW, labels_BHW.where(labelled_BHW, 0))
    kept_BHW = hard_pixels(probability_BHW, labelled_BHW, threshold, min_kept)
    entropy_BHW = cross_entropy_map(logits_BKHW, labels_BHW, ignore_index)
    if class_weights is None:
        return mean_of_image_means(entropy_BHW, kept_BHW)
    return mean_of_image_means(entropy_BHW, kept_BHW * label_weights(labels_BHW, entropy_BHW.new_tensor(class_weights), ignore_index))


@torch.no_grad()
def label_probability(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Softmax at the labels, without gradient. Not exp(-cross-entropy), whose last digit can put it on a threshold's other side."""
    return logits_BKHW.softmax(1).gather(1, labels_BHW[:, None])[:, 0]


def hard_pixels(probability_BHW: Tensor, among_BHW: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Those pixels of `among` that OHEM keeps, image by image; min_kept 0 leaves the threshold alone."""
    count = among_BHW[0].numel() if len(among_BHW) else 0
    if min_kept > count:
        return among_BHW
    if min_kept == 0:
        return among_BHW & (probability_BHW <= threshold)
    # Pixels outside come last: where fewer than min_kept are inside, the limit is infinite.
    candidates_BN = probability_BHW.masked_fill(~among_BHW, math.inf).flatten(1)
    limit_B = candidates_BN.topk(min_kept, largest=False, sorted=False).values.amax(1).clamp(min=threshold)
    return among_BHW & (probability_BHW <= limit_B[:, None, None])


def mean_of_image_means(values_BHW: Tensor, weights_BHW: Tensor) -> Tensor:
    """The rank's share of the mean over all images of their weighted means; one whose weights are all 0 counts as 0."""
    weights_BHW = weights_BHW.to(values_BHW.dtype)
    totals_B, sums_B = (values_BHW * weights_BHW).sum((1, 2)), weights_BHW.sum((1, 2))
    means_B = totals_B / sums_B.clamp(min=torch.finfo(sums_B.dtype).tiny)
    return share_of_mean(means_B.sum(), torch.tensor(len(means_B), device=means_B.device))
