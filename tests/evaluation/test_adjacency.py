"""The cosine of adjacent classes' weights (E-CRF, Fig. 1) against a count over pixels in plain Python."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.evaluation.inference import Prediction
from pipeline.evaluation.tally import Tally, adjacent_cosine

CLASSES = 5


def counted(maps: list[np.ndarray]) -> Counter[tuple[int, int]]:
    """How often a pixel of class k has a 4-neighbour of class l, k and l different and not void."""
    pairs: Counter[tuple[int, int]] = Counter()
    for labels_HW in maps:
        height, width = labels_HW.shape
        for y in range(height):
            for x in range(width):
                for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= ny < height and 0 <= nx < width:
                        one, other = int(labels_HW[y, x]), int(labels_HW[ny, nx])
                        if one != other and max(one, other) < CLASSES:
                            pairs[one, other] += 1
    return pairs


def expected(weights: list[list[float]], pairs: Counter[tuple[int, int]]) -> float | None:
    cosines = []
    for k in range(CLASSES):
        shared = {other: number for (one, other), number in pairs.items() if one == k}
        if shared:
            a, b = weights[k], weights[min(shared, key=lambda other: (-shared[other], other))]
            cosines.append(sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)))
    return sum(cosines) / len(cosines) if cosines else None


@pytest.mark.parametrize("seed", range(6))
def test_cosine_is_that_of_the_class_met_most_often_in_the_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = [0, 1, 3, 255] if seed % 2 else [0, 1, 2, 3, 4, 255]  # classes that the split lacks are left out
    maps = [rng.choice(np.array(present, np.uint8), size).repeat(2, 0).repeat(3, 1) for size in ((4, 5), (1, 6), (7, 1))]
    weights_KC = torch.from_numpy(rng.standard_normal((CLASSES, 7)))
    tally = Tally.empty(len(maps), 1, CLASSES)
    for index, labels_HW in enumerate(maps):
        ids_HW = rng.integers(0, CLASSES, labels_HW.shape).astype(np.uint8)  # predictions do not matter
        tally.add(index, Prediction(ids_HW, ids_HW, 1.0), labels_HW, [1])
    found = adjacent_cosine(weights_KC, tally.neighbours_KK)
    assert found == pytest.approx(expected(weights_KC.tolist(), counted(maps)), rel=1e-12)
    assert found is not None
    assert abs(found) > 1e-3


def test_a_split_without_borders_has_no_cosine() -> None:
    tally = Tally.empty(1, 1, CLASSES)
    alone_HW = np.full((3, 4), 255, np.uint8)
    alone_HW[0] = 2
    tally.add(0, Prediction(alone_HW, alone_HW, 1.0), alone_HW, [1])
    assert adjacent_cosine(torch.eye(CLASSES), tally.neighbours_KK) is None
