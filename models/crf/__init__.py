"""The last part of a network, from features to logits: a classifier alone, or with a conditional random field."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn

from models.crf.conv import Conv
from models.crf.embedded import Embedded
from models.crf.mean_field import MeanField
from models.crf.unary import Unary


class CRF(Protocol):
    """Built from (channels, classes, *, options); its options are its keyword-only arguments, and `more_options` if it has these."""

    dropout: nn.Dropout2d  # before the classifier
    classifier: nn.Conv2d  # 1x1
    needs_superpixels: bool
    extras: tuple[str, ...]  # the names of what it gives besides the logits

    def __call__(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None, /) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits_BKhw, what its losses need by name: `unary` for logits before the field). The image is in [0, 1]."""


CRFS: Mapping[str, Callable[..., CRF]] = {"conv": Conv, "embedded": Embedded, "mean_field": MeanField, "unary": Unary}
