"""Predict one image: whole or by sliding window, at one scale and averaged over scales and flips, in bounded memory.

The softmax is averaged at the label's own size. A full-size K x H x W tensor is what breaks memory (150 classes at
2200 x 1650 are 2 GB), so there is one at most, the running sum; all else is held at the network's stride (`windows.py`). A
dense CRF cannot work in strips: an evaluation that has one holds a few tensors of that size while it runs.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.evaluation.dense_crf import refined
from pipeline.evaluation.windows import Network, Rows, Scaled, Sliding, forward, in_unit_range, resized_rows
from pipeline.settings.schema import DenseCRF, Evaluation

STRIP = {"cpu": 2**18, "cuda": 2**24}  # elements (K x rows x W) of a strip: a CPU's cache, a GPU's many cores
SINGLE = (1.0, False)

Look = tuple[float, bool]  # a scale, and whether the image is mirrored


@dataclass(frozen=True)
class Prediction:
    """Class ids (H, W) uint8 of the two protocols, and the seconds that the single-scale one took."""

    single_HW: NDArray[np.uint8]
    multi_HW: NDArray[np.uint8]
    seconds: float


def scaled_size(size: tuple[int, int], short_side: int | None, scale: float) -> tuple[int, int]:
    """Height and width of an image fitted to `short_side` (null: as it is) and then scaled."""
    factor = scale * (short_side / min(size) if short_side else 1.0)
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def strips(classes: int, size: tuple[int, int], device: torch.device) -> list[tuple[int, int]]:
    """Bands of rows [start, stop) of a K x H x W tensor, each of about `STRIP` elements."""
    rows = max(1, STRIP.get(device.type, STRIP["cuda"]) // (classes * size[1]))
    return [(start, min(start + rows, size[0])) for start in range(0, size[0], rows)]


def looks(evaluation: Evaluation) -> list[Look]:
    """What the softmax is averaged over: every scale once, mirrored too with `flip`."""
    return [(scale, flip) for scale in dict.fromkeys(evaluation.scales) for flip in ((False, True) if evaluation.flip else (False,))]


def views(
    network: Network,
    image: Image.Image,
    superpixels_HW: NDArray[np.int32] | None,
    evaluation: Evaluation,
    chosen: Iterable[Look],
    told: Callable[[], None] | None = None,
) -> Iterator[tuple[Look, Rows]]:
    """What the network says of an image at each look, one after the other: all of it at once, or by windows, each of which is `told`."""
    scaled, at = None, None
    for scale, flip in chosen:
        if scaled is None or scale != at:
            size = scaled_size((image.height, image.width), evaluation.short_side, scale)
            scaled, at = Scaled.of(network, image, superpixels_HW, size), scale
        if evaluation.mode == "whole":
            seen = scaled.mirrored() if flip else scaled
            yield (scale, flip), forward(network.model, in_unit_range(seen.image_3HW, network), seen.superpixels_HW)
        else:
            assert evaluation.window is not None
            assert evaluation.stride is not None
            yield (scale, flip), Sliding(network, scaled, evaluation.window, evaluation.stride, flip, told)


@torch.inference_mode()
def predict(
    network: Network,
    image: Image.Image,
    superpixels_HW: NDArray[np.int32] | None,
    evaluation: Evaluation,
    classes: int,
    keep: Callable[[int, Tensor], None] | None = None,
) -> Prediction:
    """Predict an RGB image at its own size. `keep` gets the probabilities of the multi-scale protocol: (first row, K R W), in order.

    Single scale is scale 1 without flip; multi is the mean softmax over `evaluation.scales`, each mirrored too with
    `evaluation.flip`. They share the view that both have, and are one where that is all. `evaluation.dense_crf` refines the
    probabilities of each.
    """
    size, mean, crf = (image.height, image.width), looks(evaluation), evaluation.dense_crf
    several = mean != [SINGLE]
    device, dtype = (weights := next(network.model.parameters())).device, weights.dtype
    total_KHW = torch.zeros(classes, *size, device=device, dtype=dtype) if several or crf else None
    best_HW = torch.empty(size, dtype=torch.uint8, device=device)
    single_HW, seconds, began = best_HW.cpu().numpy(), 0.0, time.perf_counter()
    chosen = sorted(dict.fromkeys([SINGLE, *mean]), key=lambda look: look[0] != SINGLE[0])  # what both share comes first
    for look, source in views(network, image, superpixels_HW, evaluation, chosen):
        for start, stop in strips(classes, size, device):
            logits_KRW = resized_rows(source, size, start, stop, flip=look[1])
            if look == SINGLE:
                best_HW[start:stop] = logits_KRW.max(0).indices  # argmax takes three times as long
            if total_KHW is not None and (look in mean or crf):
                total_KHW[:, start:stop] += logits_KRW.softmax(0)
            elif keep and total_KHW is None:
                keep(start, logits_KRW.softmax(0))
        del source  # before the next view's
        if look == SINGLE:
            if total_KHW is not None and crf:
                best_HW = refined(total_KHW, image, crf)
                total_KHW *= float(SINGLE in mean)  # else the mean begins after this view
            single_HW = best_HW.cpu().numpy().copy()  # waits for the device
            seconds = time.perf_counter() - began
    if total_KHW is None or not several:
        return Prediction(single_HW, single_HW, seconds)
    total_KHW /= len(mean)
    if keep:
        for start, stop in strips(classes, size, device):
            keep(start, total_KHW[:, start:stop])
    return Prediction(single_HW, classes_of(total_KHW, image, crf).cpu().numpy(), seconds)


def classes_of(probabilities_KHW: Tensor, image: Image.Image, crf: DenseCRF | None) -> Tensor:
    """The most probable classes H W, uint8, after the CRF if there is one."""
    if crf:
        return refined(probabilities_KHW, image, crf)
    K, H, W = probabilities_KHW.shape
    parts = [probabilities_KHW[:, start:stop].max(0).indices for start, stop in strips(K, (H, W), probabilities_KHW.device)]
    return torch.cat(parts).to(torch.uint8)
