"""Decoupled supervision: of an image's body with relaxed borders, of its edges, and of the hard pixels on them.

Li, Li, Zhang, Cheng, Shi, Lin, Tan, Tong: Improving Semantic Segmentation via Decoupled Body and Edge Supervision (ECCV 2020); the
relaxation is Zhu et al.'s (CVPR 2019). With s the final logits, b the edge logit, p the softmax of the body's logits,

    L = OHEM(s) + body_weight L_body + edge_weight L_bce(b) + edge_attention_weight OHEM(s where sigmoid(b) > edge_threshold)
    L_body = per image, the sum over pixels of -(mean over c in S of w_c) log(sum over k in S of p_k), over the pixels with any S, + 1
    L_bce  = mean over pixels of the cross-entropy of b, positives weighted neg / (pos + neg), negatives pos / (pos + neg)

S are the classes in a pixel's 3x3 window, w_c is 2 - the class's share of the image's multi-hot labels. Edges are the pixels within
`edge_radius` of any class's outline; the image's frame is one. Where the released code differs we follow the paper: one sigmoid (the code
has two), the true label at borders (the code takes the lowest class nearby, and edges of labels widened by a pixel), images averaged
(the code counts each of B images B times), 0 where no pixel is on an edge (the code: NaN). As in the code, edge_weight is 20 (the paper:
25) and edge attention keeps at least edge_min_kept pixels (the paper: the hardest tenth of the image).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.parts.entropy import (
    IGNORE,
    branches,
    check_weights,
    cross_entropy_map,
    hard_pixels,
    label_probability,
    mean_of_image_means,
    ohem_cross_entropy,
)
from models.parts.layers import Output, at_least_float32, resize, size_of
from models.parts.reductions import all_sum, share_of_mean

NONE = -1  # no class


class BodyEdgeLoss:
    """The terms `cross_entropy`, `body`, `edge` and `edge_attention`, and those of the branches; a weight of 0 leaves its term out.

    threshold, min_kept, edge_min_kept: OHEM's, in pixels of each image; a threshold of 1 keeps all pixels.
    """

    needs: tuple[str, ...] = ("body", "edge")

    def __init__(
        self,
        classes: int,
        auxiliary_weight: float,
        *,
        body_weight: float = 1.0,
        edge_weight: float = 20.0,
        edge_attention_weight: float = 1.0,
        threshold: float = 0.7,
        min_kept: int = 10000,
        edge_min_kept: int = 5000,
        edge_threshold: float = 0.8,
        edge_radius: int = 2,
        relaxation: int = 1,
        unary_weight: float = 1.0,
    ) -> None:
        weights = {"body_weight": body_weight, "edge_weight": edge_weight, "edge_attention_weight": edge_attention_weight}
        check_weights("body_edge", weights | {"unary_weight": unary_weight})
        if not (0 <= threshold <= 1 and 0 <= edge_threshold <= 1):
            raise ValueError(f"loss body_edge: threshold and edge_threshold must be in [0, 1], not {threshold} and {edge_threshold}")
        if min(min_kept, edge_min_kept, relaxation) < 0 or edge_radius < 1:
            raise ValueError("loss body_edge: min_kept, edge_min_kept and relaxation must not be negative, edge_radius at least 1")
        self.classes, self.radius, self.window = classes, edge_radius, relaxation
        self.body, self.edge, self.attention = body_weight, edge_weight, edge_attention_weight
        self.threshold, self.edge_threshold = threshold, edge_threshold
        self.kept, self.edge_kept = min_kept, edge_min_kept
        self.weights = {"auxiliary": auxiliary_weight, "unary": unary_weight}

    def __call__(self, output: Output, labels_BHW: Tensor) -> dict[str, Tensor]:
        """The terms, weighted. labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them."""

        def full(logits_BKhw: Tensor) -> Tensor:
            return resize(at_least_float32(logits_BKhw), size_of(labels_BHW), output.align_corners)

        labels_BHW = labels_BHW.long()
        labelled_BHW = labels_BHW != IGNORE
        logits_BKHW, edge_B1HW = full(output.logits_BKhw), full(output.extras["edge"])
        # Both means over hard pixels are of the same map.
        probability_BHW = label_probability(logits_BKHW, labels_BHW.where(labelled_BHW, 0))
        entropy_BHW = cross_entropy_map(logits_BKHW, labels_BHW)

        def hard_mean(among_BHW: Tensor, min_kept: int) -> Tensor:
            return mean_of_image_means(entropy_BHW, hard_pixels(probability_BHW, among_BHW, self.threshold, min_kept))

        terms = {"cross_entropy": hard_mean(labelled_BHW, self.kept)}
        if self.body:
            relaxed_BLHW = relaxed_labels(labels_BHW, self.classes, self.window)
            terms["body"] = self.body * relaxed_cross_entropy(full(output.extras["body"]), relaxed_BLHW)
        if self.edge:
            terms["edge"] = self.edge * balanced_edge_loss(edge_B1HW, edge_labels(labels_BHW, self.classes, self.radius))
        if self.attention:
            found_BHW = labelled_BHW & (edge_B1HW.detach().sigmoid()[:, 0] > self.edge_threshold)
            terms["edge_attention"] = self.attention * hard_mean(found_BHW, self.edge_kept)
        return terms | branches(output, labels_BHW, self.weights)


def edge_cross_entropy(
    logits_BKHW: Tensor,
    labels_BHW: Tensor,
    edge_probability_B1HW: Tensor,
    *,
    edge_threshold: float = 0.8,
    min_kept: int,
    ignore_index: int = IGNORE,
    threshold: float = 0.7,
) -> Tensor:
    """`ohem_cross_entropy` of the pixels whose edge probability exceeds `edge_threshold`; 0 where none does. No gradient to the edges."""
    found_BHW = edge_probability_B1HW.detach()[:, 0] > edge_threshold
    labels_BHW = labels_BHW.long().where(found_BHW, ignore_index)
    return ohem_cross_entropy(logits_BKHW, labels_BHW, threshold=threshold, min_kept=min_kept, ignore_index=ignore_index)


def relaxed_labels(labels_BHW: Tensor, num_classes: int, window: int = 1) -> Tensor:
    """The classes within `window` pixels of each pixel, in rows and in columns, as multi-hot BLHW; the last of the L = K + 1 stands for
    what is ignored (any id that is no class) or outside the image.
    """  # fmt: skip
    ids_BHW = _plain(labels_BHW, num_classes)
    batch, height, width = ids_BHW.shape
    padded_BHW = F.pad(ids_BHW, (window,) * 4, value=num_classes)
    hot_BLHW = torch.zeros(batch, num_classes + 1, height, width, dtype=torch.bool, device=labels_BHW.device)
    for down in range(2 * window + 1):
        for right in range(2 * window + 1):
            hot_BLHW.scatter_(1, padded_BHW[:, None, down : down + height, right : right + width], True)
    return hot_BLHW


def relaxed_cross_entropy(logits_BKHW: Tensor, relaxed_BLHW: Tensor) -> Tensor:
    """L_body of the module's text: the rank's share of its mean over the images. relaxed: as of `relaxed_labels`.

    ValueError: other sizes, or not one class more than there are logits.
    """
    batch, classes, *size = logits_BKHW.shape
    if relaxed_BLHW.shape != (batch, classes + 1, *size):
        raise ValueError(f"loss body_edge: relaxed labels {tuple(relaxed_BLHW.shape)} do not fit logits {tuple(logits_BKHW.shape)}")
    logits_BKHW = at_least_float32(logits_BKHW)
    hot_BLHW = relaxed_BLHW.bool()
    ones_BL = torch.stack([hot_BHW.to(logits_BKHW.dtype).sum((1, 2)) for hot_BHW in hot_BLHW.unbind(1)], 1)
    weights_BK = (2 - ones_BL / ones_BL.sum(1, keepdim=True).clamp(min=1))[:, :-1]
    hot_BKHW = hot_BLHW[:, :-1]
    ids_BK = torch.arange(hot_BKHW.shape[1], device=hot_BKHW.device).expand_as(weights_BK)
    values_B3K = torch.stack([torch.ones_like(weights_BK), ids_BK.to(weights_BK), weights_BK], 1)
    sizes_BHW, ids_BHW, weight_BHW = _sums_over_classes(hot_BKHW, values_B3K).unbind(1)
    only_BHW = ids_BHW.long().masked_fill(sizes_BHW != 1, NONE)
    surprise_BHW = -_LogInside.apply(logits_BKHW.log_softmax(1), hot_BKHW, only_BHW, sizes_BHW > 1)
    totals_B = (surprise_BHW * weight_BHW / sizes_BHW.clamp(min=1)).sum((1, 2))
    means_B = totals_B / ((sizes_BHW > 0).sum((1, 2)) + 1)
    return share_of_mean(means_B.sum(), torch.tensor(len(means_B), device=means_B.device))


class _LogInside(Function):
    """The logarithm of the sum of p over each pixel's classes, 0 where it has none: a look-up for its only one, as almost everywhere."""

    @staticmethod
    def forward(ctx: Any, log_p_BKHW: Tensor, hot_BKHW: Tensor, only_BHW: Tensor, several_BHW: Tensor) -> Tensor:
        places = several_BHW.nonzero(as_tuple=True)
        rows_NK, hot_NK = (map_BKHW.movedim(1, -1)[places] for map_BKHW in (log_p_BKHW, hot_BKHW))
        rows_NK = rows_NK.masked_fill(~hot_NK, -math.inf)
        inside_BHW = log_p_BKHW.gather(1, only_BHW.clamp(min=0)[:, None])[:, 0].masked_fill_(only_BHW == NONE, 0)
        ctx.save_for_backward(hot_BKHW, rows_NK.softmax(1), *places)
        return inside_BHW.index_put_(places, rows_NK.logsumexp(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        hot_BKHW, shares_NK, *places = ctx.saved_tensors
        to_log_p_BKHW = torch.where(hot_BKHW, gradients[0][:, None], 0.0)
        to_log_p_BKHW.movedim(1, -1)[tuple(places)] = shares_NK * gradients[0][tuple(places)][:, None]
        return to_log_p_BKHW, None, None, None


def edge_labels(labels_BHW: Tensor, num_classes: int, radius: int = 2) -> Tensor:
    """B1HW bool: the pixels within `radius` (Euclidean) of a pixel of another class; what is outside the image, and every id that is no
    class, belongs to none.

    The same pixels as those of distance transforms inside and outside every class: a pixel is near its own class's outline, or near
    another's, just where a pixel of another class is near.
    """  # fmt: skip
    ids_BHW = _plain(labels_BHW, num_classes).to(torch.int32)
    batch, height, width = ids_BHW.shape
    padded_BHW = F.pad(ids_BHW, (radius,) * 4, value=num_classes)
    edges_BHW = torch.zeros(batch, height, width, dtype=torch.bool, device=labels_BHW.device)
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            if 0 < down**2 + right**2 <= radius**2:
                rows, columns = slice(radius + down, radius + down + height), slice(radius + right, radius + right + width)
                edges_BHW |= padded_BHW[:, rows, columns] != ids_BHW
    return edges_BHW[:, None]


def balanced_edge_loss(edge_logits_B1HW: Tensor, edges_B1HW: Tensor) -> Tensor:
    """L_bce of the module's text: the rank's share of the mean over all pixels, balanced over the global batch."""
    edge_logits_B1HW, edges_B1HW = at_least_float32(edge_logits_B1HW), edges_B1HW.bool()
    target_B1HW = edges_B1HW.to(edge_logits_B1HW.dtype)
    positive, count = edges_B1HW.sum(), torch.tensor(edges_B1HW.numel(), device=edges_B1HW.device)
    share = all_sum(positive).to(target_B1HW.dtype) / all_sum(count).clamp(min=1)
    weights_B1HW = torch.where(edges_B1HW, 1 - share, share)
    total = F.binary_cross_entropy_with_logits(edge_logits_B1HW, target_B1HW, weights_B1HW, reduction="sum")
    return share_of_mean(total, count)


def _plain(labels_BHW: Tensor, num_classes: int) -> Tensor:
    """The labels with K in place of every id that is no class."""
    labels_BHW = labels_BHW.long()
    return labels_BHW.where((labels_BHW >= 0) & (labels_BHW < num_classes), num_classes)


def _sums_over_classes(hot_BKHW: Tensor, values_BVK: Tensor) -> Tensor:
    """The sums of values over each pixel's classes: BVHW. Class by class, since a product's float copy of `hot` takes much longer."""
    sums_BVHW = values_BVK.new_zeros(*values_BVK.shape[:2], *size_of(hot_BKHW))
    for hot_BHW, values_BV in zip(hot_BKHW.unbind(1), values_BVK.unbind(2), strict=True):
        sums_BVHW.addcmul_(hot_BHW[:, None].to(values_BV.dtype), values_BV[..., None, None])
    return sums_BVHW
