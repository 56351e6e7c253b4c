"""ConvCRF: mean field with Gaussian kernels that are cut off at a window, unrolled; +T learns the coordinates, +C the compatibility.

Teichmann and Cipolla: Convolutional CRFs for Semantic Segmentation (BMVC 2019). With U = log softmax(unary), colours I, coordinates p:

    K = smoothness exp(-|p_i - p_j|^2 / 2 theta_gamma^2) + appearance exp(-|I_i - I_j|^2 / 2 theta_beta^2), j in a window about i
    M = K Q          M <- M + C M (+C)          scores = (1 - weight) U + weight M          Q = softmax(scores)

The result are the last scores, without softmax. Blur b: features and Q are averaged over b x b pixels, K works there, M is brought
back bilinearly; lengths remain those of the image. Where paper and released code differ we follow the code: the window is a square,
j = i belongs to it, the colour kernel has no position (`theta_alpha` gives it one). The code starts from Q = U; that is no mean field
and here the option `start: logits`, by default Q = softmax(U). The code copies the scores once for each tap; we loop over the taps, and
keep U and one small map for each iteration: full-size maps in between are computed again for the gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.filters.blur import Blur
from models.filters.field import Field, terms
from models.kernels.precision import without_autocast
from models.parts.layers import Undecayed, at_least_float32, classifier, resize, size_of

THETAS = ("theta_alpha", "theta_beta", "theta_gamma")
LEARNED = (*THETAS, "appearance", "smoothness", "weight")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `Conv` and `conv_crf` take alike. A Tensor is a number that learns: no check reads it, that would wait for a GPU."""

    filter_size: int = 11  # the window's side
    blur: int = 4
    iterations: int = 5
    theta_alpha: Tensor | float | None = None  # pixels; None: the colour kernel has no position
    theta_beta: Tensor | float = 13.0  # colours of 0 to 255
    theta_gamma: Tensor | float = 3.0  # pixels
    appearance: Tensor | float = 10.0
    smoothness: Tensor | float = 3.0
    weight: Tensor | float = 0.2  # a Tensor may have one for each class
    start: Literal["softmax", "logits"] = "softmax"
    normalization: Literal["none", "symmetric"] = "none"  # symmetric: each kernel as D^-1/2 K D^-1/2, D being its sums

    def __post_init__(self) -> None:
        if self.filter_size < 1 or self.filter_size % 2 == 0:
            raise ValueError(f"crf conv: filter_size must be odd and positive, not {self.filter_size}")
        if self.blur < 1 or self.iterations < 0:
            raise ValueError(f"crf conv: blur must be at least 1 and iterations not negative, not {self.blur} and {self.iterations}")
        if self.start not in ("softmax", "logits"):
            raise ValueError(f"crf conv: start must be softmax or logits, not {self.start!r}")
        if self.normalization not in ("none", "symmetric"):
            raise ValueError(f"crf conv: normalization must be none or symmetric, not {self.normalization!r}")
        check_positive({name: getattr(self, name) for name in THETAS if name != "theta_alpha" or self.theta_alpha is not None})


class Conv(nn.Module):
    """Dropout and classifier, then ConvCRF on their logits at the image's size divided by `stride`; thetas in pixels of the image.

    trainable: thetas, appearance, smoothness and the weight of each class learn, as logarithms; what starts at 0 stays 0.
    compatibility: +C. position: +T, [height, width] of the map that is filtered, the only size that it then takes.
    test_iterations: in eval mode, null for as many as in training.
    """

    more_options = Options
    needs_superpixels = False
    extras: tuple[str, ...] = ("unary",)

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        dropout: float = 0.1,
        stride: int = 1,
        test_iterations: int | None = None,
        trainable: bool = True,
        compatibility: bool = False,
        position: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        chosen = Options(**options)
        self.options: dict[str, Any] = asdict(chosen)
        self.stride, self.test_iterations = stride, chosen.iterations if test_iterations is None else test_iterations
        check_positive(
            {"stride": stride, "iterations": chosen.iterations, "test_iterations": self.test_iterations, "weight": chosen.weight}
        )
        values = {name: getattr(chosen, name) for name in LEARNED}
        check_strengths(values["appearance"], values["smoothness"])
        if position is not None and (len(position) != 2 or min(position) < 1):
            raise ValueError(f"crf conv: position must be [height, width], not {position}")
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)
        learned = {name: math.log(value) for name, value in values.items() if value and trainable}
        # Of `weight` each class has its own, as released.
        starts = {name: torch.full((classes,) if name == "weight" else (), value) for name, value in learned.items()}
        if compatibility:
            starts["compatibility"] = torch.full((classes, classes), 0.1 * math.sqrt(2 / classes))
        if position is not None:
            starts["position"] = grid((position[0], position[1]), torch.empty(0))
        self.field = Undecayed(starts)

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(scores_BKHW in float32 at the image's size divided by `stride`, the logits before the field as `unary`)."""
        unary_BKhw = self.classifier(self.dropout(features_BChw))
        height, width = (-(-length // self.stride) for length in size_of(image_B3HW))
        logits_BKHW = resize(at_least_float32(unary_BKhw), (height, width))
        image_B3HW = 255 * resize(image_B3HW, (height, width)).to(logits_BKHW)
        matrices = {"compatibility_KK": self.field.get("compatibility"), "position_2HW": self.field.get("position")}
        return conv_crf(logits_BKHW, image_B3HW, **self.now(), **matrices), {"unary": unary_BKhw}

    def now(self) -> dict[str, Any]:
        """The options as they now are: what has been learned, the mode's iterations, thetas in pixels of the map that is filtered."""
        options = self.options | {name: value.exp() for name, value in self.field.items() if name in LEARNED}
        if not self.training:
            options["iterations"] = self.test_iterations
        return options | {name: options[name] / self.stride for name in ("theta_alpha", "theta_gamma") if options[name] is not None}


@torch.compiler.disable  # loops over taps and bands, which a compiler would unroll for half a minute
def conv_crf(
    unary_BKHW: Tensor,
    image_B3HW: Tensor,
    *,
    compatibility_KK: Tensor | None = None,
    position_2HW: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The scores BKHW after `iterations` steps (none: U), of the unary's type; half precision is computed in float32.

    unary: logits; the image in [0, 255], of their size. options: of `Options`, numbers that learn as scalar tensors, `weight` also
    as one value for each class. position: rows and columns in pixels in place of those of the smoothness kernel.
    ValueError: sizes that do not fit, an option out of range.
    """
    chosen = Options(**options)
    check_sizes(unary_BKHW, image_B3HW, compatibility_KK, position_2HW)
    with without_autocast(unary_BKHW.device):
        log_BKHW = at_least_float32(unary_BKHW).log_softmax(1)
        blocks = Blur(size_of(log_BKHW), chosen.blur)
        features = features_of(image_B3HW.to(log_BKHW), chosen.theta_beta, chosen.theta_gamma, chosen.theta_alpha, position_2HW)
        features = [blocks.lowered(feature_BCHW, blocks.whole) for feature_BCHW in features]
        weights = [scalar(chosen.appearance, log_BKHW), scalar(chosen.smoothness, log_BKHW)]
        field = Field(
            log_BKHW=log_BKHW,
            terms=terms(features, weights, chosen.filter_size, blocks, chosen.normalization),
            blur=blocks,
            weight_K11=tensor(chosen.weight, log_BKHW).reshape(-1, 1, 1),
            compatibility_KK=None if compatibility_KK is None else compatibility_KK.to(log_BKHW),
        )
        return field.scores_after(chosen.iterations, chosen.start).to(unary_BKHW.dtype)


def features_of(
    image_B3HW: Tensor,
    theta_beta: Tensor | float,
    theta_gamma: Tensor | float,
    theta_alpha: Tensor | float | None,
    position_2HW: Tensor | None,
) -> list[Tensor]:
    """What the colour kernel compares, and what the smoothness kernel does: BCHW each, places with a batch of 1."""
    places_12HW = grid(size_of(image_B3HW), image_B3HW)[None]
    colours_BCHW = image_B3HW / scalar(theta_beta, image_B3HW)
    if theta_alpha is not None:
        own_12HW = places_12HW / scalar(theta_alpha, image_B3HW)
        colours_BCHW = torch.cat([colours_BCHW, own_12HW.expand(len(colours_BCHW), -1, -1, -1)], 1)
    if position_2HW is not None:
        places_12HW = position_2HW.to(image_B3HW)[None]
    return [colours_BCHW, places_12HW / scalar(theta_gamma, image_B3HW)]


def grid(size: tuple[int, int], like: Tensor) -> Tensor:
    """Row and column of every pixel: 2HW."""
    rows_H, columns_W = (torch.arange(length, device=like.device, dtype=like.dtype) for length in size)
    return torch.stack([rows_H[:, None].expand(size), columns_W.expand(size)])


def tensor(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a tensor without waiting for a device, a tensor of the type and device of `like`."""
    return value.to(like) if isinstance(value, Tensor) else torch.full((), value, device=like.device, dtype=like.dtype)


def scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """`tensor` of one number."""
    return tensor(value, like).reshape(())


def check_positive(values: Mapping[str, Tensor | float | None]) -> None:
    """ValueError for a number that is not positive."""
    for name, value in values.items():
        if value is None or (not isinstance(value, Tensor) and not 0 < value < math.inf):
            raise ValueError(f"crf conv: {name} must be positive, not {value}")


def check_strengths(appearance: float, smoothness: float) -> None:
    """ValueError for a negative number, or where both kernels have no weight."""
    if not (0 <= appearance < math.inf and 0 <= smoothness < math.inf and appearance + smoothness > 0):
        raise ValueError(f"crf conv: appearance and smoothness must not be negative, nor both 0, not {appearance} and {smoothness}")


def check_sizes(unary_BKHW: Tensor, image_B3HW: Tensor, compatibility_KK: Tensor | None, position_2HW: Tensor | None) -> None:
    """ValueError for tensors that do not fit together."""
    size, classes = size_of(unary_BKHW), unary_BKHW.shape[1]
    if image_B3HW.shape != (len(unary_BKHW), 3, *size):
        raise ValueError(f"crf conv: image {tuple(image_B3HW.shape)} does not fit unary {tuple(unary_BKHW.shape)}")
    if compatibility_KK is not None and compatibility_KK.shape != (classes, classes):
        raise ValueError(f"crf conv: compatibility {tuple(compatibility_KK.shape)} does not fit {classes} classes")
    if position_2HW is not None and position_2HW.shape != (2, *size):
        learned = " x ".join(map(str, position_2HW.shape[1:]))
        raise ValueError(f"crf conv: position is of {learned} pixels, it cannot filter {size[0]} x {size[1]}")
