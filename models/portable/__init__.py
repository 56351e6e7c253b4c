"""A trained network in operations that an exported graph has, for images of any size: what ONNX and torch.export take.

Most parts are traced as they stand. Those that work with lists of near tiles, bands, kernels of our own, or branches on a map's size, or
that switch autocast off, have a plain form here, of the same weights and the same equations; it serves prediction alone and may need
more memory. No weight depends on this folder: an edit here retrains nothing.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import backbone
from models.backbones.mit import MiT
from models.crf.conv import Conv
from models.crf.embedded import MessagePassing
from models.crf.mean_field import MeanField
from models.heads.attention import SelfAttention
from models.heads.caa import AxialAttention, FullAttention
from models.heads.decoupled import BodyEdge
from models.heads.ksac import Pyramid
from models.parts.layers import PyramidPooling, size_of
from models.portable import fields, heads, messages
from models.segmenter import Segmenter

FORMS: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    AxialAttention: heads.PlainAxialAttention,
    BodyEdge: heads.PlainBodyEdge,
    Conv: fields.PlainConv,
    FullAttention: heads.PlainFullAttention,
    MeanField: fields.PlainMeanField,
    MessagePassing: messages.PlainMessagePassing,
    Pyramid: heads.PlainPyramid,
    PyramidPooling: heads.PlainPyramidPooling,
    SelfAttention: heads.PlainSelfAttention,
}


class Portable(nn.Module):
    """`Segmenter` from image to logits of the image's size, in plain forms; the given network stays as it is.

    ValueError: a part that has no such form, with the reason.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        _replace(self.network)
        self.align_corners: bool = self.network.head.align_corners

    def settle(self, image: Tensor, superpixels: Tensor | None = None) -> None:
        """Have convolutions copy what reaches them permuted or cut, as these inputs show: else a trace of them fixes a batch above 1."""
        found: set[nn.Module] = set()

        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            if not inputs[0].is_contiguous():
                found.add(module)

        hooks = [module.register_forward_pre_hook(look) for module in self.modules() if isinstance(module, nn.Conv2d)]
        self(image, superpixels)
        for hook in hooks:
            hook.remove()
        for module in found:
            module.register_forward_pre_hook(_copied)

    def forward(self, image: Tensor, superpixels: Tensor | None = None) -> Tensor:
        """Logits B, classes, H, W of images B3HW in [0, 1], and superpixels BHW (int64, negative for none) where the method has them."""
        network = self.network
        stages = _stages(network.backbone, (image - network.mean) / network.deviation)
        features_BChw, _ = network.head(stages)
        _, output_BChw = network.projection(features_BChw)
        logits_BKhw, _ = network.crf(output_BChw, image, superpixels)
        return F.interpolate(logits_BKhw, size_of(image), mode="bilinear", align_corners=self.align_corners)


def _replace(module: nn.Module) -> None:
    """Put the plain form in the place of each part that has one."""
    for name, child in module.named_children():
        if type(child) in FORMS:
            module.add_module(name, FORMS[type(child)](child))
        elif type(child).__name__ == "AvgPool2dSame":  # by its name, for timm is slow to import
            module.add_module(name, heads.PlainAvgPoolSame(child))
        else:
            _replace(child)


def _copied(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].clone(memory_format=torch.contiguous_format),)


def _stages(network: nn.Module, image_B3HW: Tensor) -> list[Tensor]:
    """`backbone.stages`, without its branch on the size: what needs no padding is padded by 0."""
    if isinstance(network, MiT):  # nothing to cut from an image that is not tiny; ONNX would round its negative divisions up
        found = [image_B3HW]
        for stage in network.stages:
            found.append(stage(found[-1]))
        return found[1:]
    described: Any = network
    multiple, least = described.sides
    if (multiple, least) == (1, 1):
        return network(image_B3HW)
    sides = size_of(image_B3HW)
    below, right = ((-side) % multiple for side in sides)
    found = network(F.pad(image_B3HW, (0, right, 0, below)))
    cut = [tuple((side + stride - 1) // stride for side in sides) for stride in backbone.shape(network)[1]]
    return [x_BCHW[..., :height, :width] for x_BCHW, (height, width) in zip(found, cut, strict=True)]
