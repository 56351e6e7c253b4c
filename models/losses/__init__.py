"""Losses: from a network's output and the labels to weighted terms, which training sums."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from models.losses.body_edge import BodyEdgeLoss
from models.losses.car import CAR
from models.losses.cross_entropy import CrossEntropy
from models.parts.layers import Output


class Loss(Protocol):
    """Built from (classes, auxiliary_weight, *, options); its options are its keyword-only arguments."""

    needs: tuple[str, ...]  # the names of the extras that it cannot do without

    def __call__(self, output: Output, labels_BHW: Tensor, /) -> dict[str, Tensor]:
        """Terms by name, each already weighted, such that its mean over the ranks is the term of the global batch."""


LOSSES: Mapping[str, Callable[..., Loss]] = {"body_edge": BodyEdgeLoss, "car": CAR, "cross_entropy": CrossEntropy}
