"""A network of three parts: backbone and head, projection, crf; built from a config's names.

backbone -> head(stages) -> projection -> crf(output, image, superpixels) -> logits, with an auxiliary branch in training.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.backbones import backbone
from models.crf import CRF, CRFS
from models.heads import HEADS, Head
from models.losses import LOSSES, Loss
from models.options import options
from models.parts.layers import Output, Projection, classifier, conv_norm_act

T = TypeVar("T")


class Part(Protocol):
    """A head, crf or loss: its name in the table, and its options."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def options(self) -> Mapping[str, Any]: ...  # noqa: D102


class BackboneChoice(Protocol):
    """A timm model, its stride, and where its weights come from."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def output_stride(self) -> int: ...  # noqa: D102
    @property
    def pretrained(self) -> bool | Path: ...  # noqa: D102


class AuxiliaryChoice(Protocol):
    """The stage that the auxiliary branch reads, its shape, and its loss's weight."""

    @property
    def stage(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def kernel(self) -> int: ...  # noqa: D102
    @property
    def weight(self) -> float: ...  # noqa: D102


class Choices(Protocol):
    """What `build` and `build_loss` read of a run's config."""

    @property
    def backbone(self) -> BackboneChoice: ...  # noqa: D102
    @property
    def auxiliary(self) -> AuxiliaryChoice | None: ...  # noqa: D102
    @property
    def head(self) -> Part: ...  # noqa: D102
    @property
    def crf(self) -> Part: ...  # noqa: D102
    @property
    def loss(self) -> Part: ...  # noqa: D102
    @property
    def projection(self) -> Any: ...  # noqa: D102


class Auxiliary(nn.Module):
    """A small FCN on one stage: convolution, dropout, classifier."""

    def __init__(self, channels: int, classes: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv = conv_norm_act(channels, width, kernel)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits BKHW of the stage."""
        return self.classifier(self.dropout(self.conv(x_BCHW)))


class Segmenter(nn.Module):
    """The whole network. Its submodules `backbone`, `head`, `projection`, `auxiliary` and `crf` are the parts that settings name."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, head: Head, projection: Projection, crf: CRF, auxiliary: Auxiliary | None, stage: int,
                 normalization: tuple[backbone.Triple, backbone.Triple]) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.head, self.projection, self.crf = network, head, projection, crf
        self.auxiliary, self.stage = auxiliary, stage
        for name, values in zip(("mean", "deviation"), normalization, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, image_B3HW: Tensor, superpixels_BHW: Tensor | None = None, *, unary: bool = False) -> Output:
        """The image is in [0, 1]; superpixels at its size, any integers, negative for none. `extras["auxiliary"]` in training only.

        unary: the logits are those of the crf's classifier, its field and its extras are left out.
        """
        stages = backbone.stages(self.backbone, (image_B3HW - self.mean) / self.deviation)
        features_BChw, extras = self.head(stages)
        features_BChw, output_BChw = self.projection(features_BChw)
        if unary:
            logits_BKhw = self.crf.classifier(self.crf.dropout(output_BChw))
        else:
            logits_BKhw, more = self.crf(output_BChw, image_B3HW, superpixels_BHW)
            extras = {**extras, **more}
        if self.auxiliary is not None and self.training:
            extras["auxiliary"] = self.auxiliary(stages[self.stage])
        return Output(logits_BKhw, features_BChw, extras, self.head.align_corners)


def build(config: Choices, classes: int) -> Segmenter:
    """The network that a config names, drawn from torch's global generator; on the meta device without weights.

    ValueError: a name or option that does not exist, a value out of range, parts that do not fit together.
    """
    network = backbone.build(config.backbone.name, config.backbone.output_stride, config.backbone.pretrained)
    channels, strides = backbone.shape(network)
    head = construct(HEADS, config.head, "head", channels, strides, classes)
    projection = Projection(head.end, config.projection)
    crf = construct(CRFS, config.crf, "crf", projection.channels, classes)
    branch = config.auxiliary
    if branch is not None and not -len(channels) <= branch.stage < len(channels):
        raise ValueError(f"auxiliary.stage {branch.stage} does not exist: the backbone has {len(channels)} stages")
    normalization = backbone.normalization(config.backbone.name)
    if branch is None:
        return Segmenter(network, head, projection, crf, None, 0, normalization)
    # One dropout rate for all classifiers, so that one option switches it off.
    auxiliary = Auxiliary(channels[branch.stage], classes, branch.width, branch.kernel, crf.dropout.p)
    return Segmenter(network, head, projection, crf, auxiliary, branch.stage, normalization)


def build_loss(config: Choices, classes: int) -> Loss:
    """The loss that a config names. ValueError as `build`."""
    return construct(LOSSES, config.loss, "loss", classes, config.auxiliary.weight if config.auxiliary else 0.0)


def construct(table: Mapping[str, Callable[..., T]], part: Part, kind: str, *arguments: Any) -> T:
    """`table[part.name]` built with its options."""
    if part.name not in table:
        raise ValueError(f"{kind} {part.name!r} is unknown{_suggestion(part.name, table)}")
    known = options(table[part.name])
    for key in part.options:
        if key not in known:
            raise ValueError(f"{kind} {part.name} has no option {key!r}{_suggestion(str(key), known)}")
    try:
        return table[part.name](*arguments, **part.options)
    except (TypeError, ValueError) as error:  # torch's own, as of a dropout of 2, do not name the part
        reason = str(error).removeprefix(f"{kind} {part.name}: ")
        raise ValueError(f"{kind} {part.name}: {reason}") from error


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'; did you mean {near[0]}' if near else ''}; known: {', '.join(sorted(known)) or 'none'}"
