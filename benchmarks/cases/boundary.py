"""Boundary F: bits of all classes dilated at once, against a distance transform for each class and radius."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from benchmarks.measure import Case, Work
from pipeline.evaluation.boundary import boundary_scores

CLASSES, SIZE, RADII = 19, (512, 1024), (1, 3, 5, 9, 12)


def prepare(device: torch.device) -> Mapping[str, Work]:
    """Two label maps of smooth regions."""
    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.standard_normal(SIZE).astype(np.float32), 12) for _ in range(CLASSES)]
    labels = np.stack(fields).argmax(0).astype(np.uint8)
    shifted = np.roll(labels, (2, 3), (0, 1))
    return {"ours": lambda: ours(shifted, labels), "distance transforms": lambda: literal(shifted, labels)}


def ours(prediction: NDArray[np.uint8], labels: NDArray[np.uint8]) -> object:
    """All classes and radii."""
    return boundary_scores(prediction, labels, CLASSES, RADII)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def literal(prediction: NDArray[np.uint8], labels: NDArray[np.uint8]) -> list[float]:
    """One class and one radius after the other."""
    scores = []
    for radius in RADII:
        for index in range(CLASSES):
            found, true = outline(prediction == index), outline(labels == index)
            near_true = np.asarray(distance_transform_edt(~true)) <= radius
            near_found = np.asarray(distance_transform_edt(~found)) <= radius
            precision = (found & near_true).sum() / max(found.sum(), 1)
            recall = (true & near_found).sum() / max(true.sum(), 1)
            scores.append(float(2 * precision * recall / max(precision + recall, 1e-9)))
    return scores


CASES = (Case("boundary F, five radii, 512 x 1024 x 19", "60 ms", prepare, devices=("cpu",)),)
