"""Predict a large image by windows, in memory that does not grow with pixels times classes, whatever scales and flips.

All views (scales, each mirrored too) go down the image side by side: a strip of rows is the mean of their softmaxes, its labels are
written out, and windows above it are dropped. What is held of the whole image are bytes: its pixels at each scale, superpixels, labels;
of all classes, the logits of about one row of windows for each view.
The values are those of `inference.predict`, which takes one view after the other and needs a map of all classes for their sum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.evaluation.inference import looks, scaled_size, strips, views
from pipeline.evaluation.windows import Network, resized_rows, starts
from pipeline.settings.schema import Evaluation

Told = Callable[[str, int, int], None]  # "windows" (or "blocks" of superpixels), how many are done, of how many


@dataclass
class Count:
    """Windows as they are done."""

    told: Told | None
    total: int
    done: int = 0

    def __call__(self) -> None:
        """One more."""
        self.done += 1
        if self.told:
            self.told("windows", self.done, self.total)


@torch.inference_mode()
def predict_by_rows(
    network: Network,
    image: Image.Image,
    superpixels_HW: NDArray[np.int32] | None,
    evaluation: Evaluation,
    classes: int,
    keep: Callable[[int, Tensor], None] | None = None,
    told: Told | None = None,
) -> NDArray[np.uint8]:
    """The class ids HW of an RGB image; `evaluation` slides. `keep` gets the probabilities as (first row, K R W), in order."""
    size, device = (image.height, image.width), next(network.model.parameters()).device
    chosen = looks(evaluation)
    count = Count(told, sum(windows(scaled_size(size, evaluation.short_side, scale), evaluation) for scale, _ in chosen))
    seen = [(source, flip) for (_, flip), source in views(network, image, superpixels_HW, evaluation, chosen, count)]
    labels_HW = np.empty(size, np.uint8)
    for start, stop in strips(classes, size, device):
        rows = (resized_rows(source, size, start, stop, flip=flip) for source, flip in seen)
        if len(seen) == 1:
            logits_KRW = next(rows)
            labels_HW[start:stop] = logits_KRW.max(0).indices.to(torch.uint8).cpu().numpy()
            if keep:
                keep(start, logits_KRW.softmax(0))
            continue
        total_KRW = next(rows).softmax(0)
        for logits_KRW in rows:
            total_KRW += logits_KRW.softmax(0)
        total_KRW /= len(seen)
        labels_HW[start:stop] = total_KRW.max(0).indices.to(torch.uint8).cpu().numpy()
        if keep:
            keep(start, total_KRW)
    return labels_HW


def windows(size: tuple[int, int], evaluation: Evaluation) -> int:
    """How many windows an image of a size takes."""
    assert evaluation.window is not None
    assert evaluation.stride is not None
    rows, columns = (len(starts(*each)) for each in zip(size, evaluation.window, evaluation.stride, strict=True))
    return rows * columns
