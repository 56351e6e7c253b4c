"""Boundary F-score of GSCNN: how well predicted outlines lie on the true ones, for all classes and radii at once.

Takikawa et al., Gated-SCNN, ICCV 2019, after Perazzi et al., DAVIS, CVPR 2016. For one class with mask m:

    b(y, x) = m differs from its right, lower or lower-right neighbour (none beyond the image)
    P = |b_pred and dilate(b_true, disk r)| / |b_pred|,  R = |b_true and dilate(b_pred, disk r)| / |b_true|,  F = 2PR / (P + R)

F is 1 where neither mask has an outline and 0 where only one has. Ignored pixels belong to no class in either mask.

A class is one bit of an integer per pixel, so that a single pass finds or dilates the outlines of all of them. A disk is a
stack of rows: we widen the outlines by one pixel at a time, and at half-width k hand them to the rows of every disk that has
that half-width; so all radii together cost one widening and one `or` per row of each disk.
"""

from collections.abc import Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

WORDS = ((8, np.uint8), (16, np.uint16), (32, np.uint32), (64, np.uint64))
MOST = 64  # classes in one word


def boundary_f(
    prediction_HW: NDArray | Tensor, labels_HW: NDArray | Tensor, num_classes: int, radius: int, *, ignore_index: int = 255
) -> tuple[NDArray, NDArray] | tuple[Tensor, Tensor]:
    """Boundary F of each class of one image at one radius in pixels.

    Returns f_K float64 (1 where a class is in neither mask) and present_K bool (in either mask, outside ignored pixels), as
    arrays of the inputs' kind. Raises ValueError for ids outside the classes and for masks of different sizes.
    """
    f_RK, present_K = boundary_scores(prediction_HW, labels_HW, num_classes, (radius,), ignore_index=ignore_index)
    if isinstance(prediction_HW, Tensor):
        return from_numpy(f_RK[0]), from_numpy(present_K)
    return f_RK[0], present_K


def boundary_scores(
    prediction_HW: NDArray | Tensor, labels_HW: NDArray | Tensor, num_classes: int, radii: Sequence[int], *, ignore_index: int = 255
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`boundary_f` at several radii: f_RK in the radii's order, and present_K, as numpy arrays."""
    predicted, true = as_array(prediction_HW), as_array(labels_HW)
    if predicted.shape != true.shape or true.ndim != 2:
        raise ValueError(f"prediction {predicted.shape} and labels {true.shape} must be masks of one size")
    if any(int(radius) != radius or radius < 0 for radius in radii):
        raise ValueError(f"radii must be whole pixels, not {list(radii)}")
    radii = [int(radius) for radius in radii]
    valid = true != ignore_index
    present_K = seen(predicted, valid, num_classes, "prediction") | seen(true, valid, num_classes, "label")
    f_RK = np.ones((len(radii), num_classes))
    classes = np.flatnonzero(present_K)
    for chosen in (classes[start : start + MOST] for start in range(0, len(classes), MOST)):
        word = next(kind for bits, kind in WORDS if len(chosen) <= bits)
        ours, theirs = (outline(as_bits(mask, valid, chosen, num_classes, word)) for mask in (predicted, true))
        f_RK[:, chosen] = f_scores(ours, theirs, len(chosen), radii)
    return f_RK, present_K


def as_array(mask: NDArray | Tensor) -> NDArray:
    """A mask of integers as a numpy array."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype.kind not in "iub":
        raise ValueError(f"a mask holds class ids, not {array.dtype}")
    return array


def seen(mask: NDArray, valid: NDArray[np.bool_], num_classes: int, what: str) -> NDArray[np.bool_]:
    """Which classes are in a mask's valid pixels (K,)."""
    ids = mask[valid]
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{what} {wrong} is outside the {num_classes} classes")
    return np.bincount(ids.astype(np.intp), minlength=num_classes) > 0


def as_bits(mask: NDArray, valid: NDArray[np.bool_], chosen: NDArray, num_classes: int, word: type) -> NDArray:
    """Each pixel's class as one bit, the i-th for the i-th chosen class; 0 for others and where ignored."""
    table = np.zeros(num_classes + 1, word)
    table[chosen] = np.left_shift(word(1), np.arange(len(chosen), dtype=word))
    return table[np.where(valid, mask, num_classes)]


def outline(bits_HW: NDArray) -> NDArray:
    """The classes whose mask changes towards the right, lower or lower-right neighbour of each pixel, as bits."""
    edges = np.zeros_like(bits_HW)
    edges[:, :-1] |= bits_HW[:, :-1] ^ bits_HW[:, 1:]
    edges[:-1] |= bits_HW[:-1] ^ bits_HW[1:]
    edges[:-1, :-1] |= bits_HW[:-1, :-1] ^ bits_HW[1:, 1:]
    return edges


def f_scores(predicted: NDArray, true: NDArray, classes: int, radii: Sequence[int]) -> NDArray[np.float64]:
    """F of each radius and bit (R, classes) from two outlines (H, W)."""
    precision = matched_share(predicted, dilations(true, radii), classes)
    recall = matched_share(true, dilations(predicted, radii), classes)
    none_predicted, none_true = np.isnan(precision), np.isnan(recall)
    total = precision + recall
    f = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return np.where(none_predicted & none_true, 1.0, np.where(none_predicted | none_true, 0.0, f))


def matched_share(outlines: NDArray, near: list[NDArray], classes: int) -> NDArray[np.float64]:
    """For each radius and bit, the share of the outline's pixels that are near the other one (R, classes); nan without outline."""
    places = np.flatnonzero(outlines)
    own = outlines.ravel()[places]
    matches = np.array([counts(own & dilated.ravel()[places], classes) for dilated in near], np.float64)
    total = counts(own, classes)
    return np.divide(matches, total, out=np.full_like(matches, np.nan), where=total > 0)


def counts(words: NDArray, classes: int) -> NDArray[np.int64]:
    """How many words have each bit set (classes,)."""
    return np.array([np.count_nonzero((words & words.dtype.type(1 << bit)) != 0) for bit in range(classes)], np.int64)


def dilations(bits_HW: NDArray, radii: Sequence[int]) -> list[NDArray]:
    """The bits dilated by a disk (dy² + dx² <= r²) of each radius."""
    H, W = bits_HW.shape
    grown = [np.zeros_like(bits_HW) for _ in radii]
    widened = bits_HW.copy()  # by k to both sides
    for k in range(max(radii) + 1):
        if 0 < k < W:
            widened[:, k:] |= bits_HW[:, :-k]
            widened[:, :-k] |= bits_HW[:, k:]
        for radius, target in zip(radii, grown, strict=True):
            for dy in rows_of_half_width(radius, k):
                if dy < H:
                    target[dy:] |= widened[: H - dy]
                    target[: H - dy] |= widened[dy:]
    return grown


def rows_of_half_width(radius: int, k: int) -> list[int]:
    """The rows dy >= 0 of a disk that reach exactly k pixels to each side."""
    return [dy for dy in range(radius + 1) if isqrt(radius * radius - dy * dy) == k]
