"""Heads: from the backbone's stages to features at one stride. One file for each; the table names them."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from models.heads.attention import Attention
from models.heads.caa import CAA
from models.heads.decoupled import Decoupled
from models.heads.deeplab import DeepLab
from models.heads.fcn import FCN
from models.heads.ksac import KSAC
from models.heads.psp import PSP
from models.heads.segformer import SegFormer
from models.heads.uper import UPer
from models.parts.layers import End


class Head(Protocol):
    """Built from (channels, strides, classes, *, options) of the stages, finest first; its options are its keyword-only arguments."""

    channels: int  # of the features that it gives, before its end convolution
    stride: int  # of these features, in pixels of the image
    align_corners: bool  # how its logits are to be resized
    end: End  # its last convolution, left to Projection
    extras: tuple[str, ...]  # the names of what it gives besides the features
    smallest_batch: int  # the smallest global batch that it can be trained with

    def __call__(self, stages: list[Tensor], /) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW, what its losses need by name)."""


HEADS: Mapping[str, Callable[..., Head]] = {
    "attention": Attention,
    "caa": CAA,
    "decoupled": Decoupled,
    "deeplab": DeepLab,
    "fcn": FCN,
    "ksac": KSAC,
    "psp": PSP,
    "segformer": SegFormer,
    "uper": UPer,
}
