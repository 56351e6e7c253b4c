"""Mean field in a dense conditional random field, unrolled: CRF-RNN, and E-CRF's baseline "Joint-CRF".

Zheng et al.: Conditional Random Fields as Recurrent Neural Networks (ICCV 2015); Krahenbuhl and Koltun: Efficient Inference in Fully
Connected CRFs with Gaussian Edge Potentials (NeurIPS 2011). With logits U, positions p and colours I:

    q = softmax(Y)        Y <- U + C (Ws K_s q + Wb K_b q)        Y = U at the start; the result is Y, without softmax
    K_s(i, j) = exp(-|p_i - p_j|^2 / 2 theta_gamma^2)
    K_b(i, j) = exp(-|p_i - p_j|^2 / 2 theta_alpha^2 - |I_i - I_j|^2 / 2 theta_beta^2)

Each K q is divided by K 1 (rows), or K is D^-1/2 K D^-1/2 with D = K 1 (symmetric). j = i belongs to K, as in every implementation.
Ws, Wb and C are full matrices as in the released code; the paper's one weight of each class and kernel is `weights: class`. Differently
from the code the filters are exact, batched, on any device, and the bandwidths have a gradient. E-CRF's authors released no Joint-CRF:
this one is a reconstruction, CRF-RNN on the head's logits at their own stride.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.filters import FILTERS
from models.filters.spatial import Spatial
from models.kernels.precision import product, without_autocast
from models.parts.layers import Undecayed, at_least_float32, classifier, resize, size_of

THETAS = ("theta_alpha", "theta_beta", "theta_gamma")
TINY = 1e-20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `MeanField` and `mean_field` take alike. A Tensor is a number that learns: no check reads it, that would wait for a GPU."""

    iterations: int = 5
    theta_alpha: Tensor | float = 160.0  # pixels
    theta_beta: Tensor | float = 3.0  # colours of 0 to 255
    theta_gamma: Tensor | float = 3.0  # pixels
    filtering: Literal["exact", "permutohedral"] = "exact"
    normalization: Literal["rows", "symmetric", "none"] = "rows"

    def __post_init__(self) -> None:
        check_positive({name: getattr(self, name) for name in THETAS})
        if self.filtering not in FILTERS:
            raise ValueError(f"crf mean_field: filtering must be {' or '.join(FILTERS)}, not {self.filtering!r}")
        if self.normalization not in ("rows", "symmetric", "none"):
            raise ValueError(f"crf mean_field: normalization must be rows, symmetric or none, not {self.normalization!r}")


class MeanField(nn.Module):
    """Dropout and classifier, then mean field on their logits; theta_alpha and theta_gamma in pixels of the image, at any stride.

    spatial_weight, bilateral_weight: the diagonals of Ws and Wb at the start; C starts as the identity. weights: Ws and Wb are full
    matrices, or diagonal (class). test_iterations: in eval mode, null for as many as in training.
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
        test_iterations: int | None = None,
        learn_bandwidths: bool = False,
        spatial_weight: float = 3.0,
        bilateral_weight: float = 5.0,
        weights: Literal["full", "class"] = "full",
        **options: Any,
    ) -> None:
        super().__init__()
        chosen = Options(**options)
        self.options: dict[str, Any] = asdict(chosen)
        self.test_iterations = chosen.iterations if test_iterations is None else test_iterations
        check_positive({"iterations": chosen.iterations, "test_iterations": self.test_iterations})
        for name, value in {"spatial_weight": spatial_weight, "bilateral_weight": bilateral_weight}.items():
            if not math.isfinite(value):
                raise ValueError(f"crf mean_field: {name} must be finite, not {value}")
        if learn_bandwidths and chosen.filtering == "permutohedral":
            raise ValueError(
                "crf mean_field: learn_bandwidths needs filtering: exact, the lattice's gradient to them often points the wrong way"
            )
        if weights not in ("full", "class"):
            raise ValueError(f"crf mean_field: weights must be full or class, not {weights!r}")
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)
        ones_K = torch.ones(classes)
        diagonals = {"spatial_weight": spatial_weight * ones_K, "bilateral_weight": bilateral_weight * ones_K}
        starts = diagonals if weights == "class" else {name: diagonal_K.diag() for name, diagonal_K in diagonals.items()}
        logarithms = {name: torch.tensor(math.log(self.options[name])) for name in THETAS if learn_bandwidths}
        self.field = Undecayed({**starts, "compatibility": torch.eye(classes), **logarithms})

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits_BKhw in float32, those before the field as `unary`)."""
        unary_BKhw = self.classifier(self.dropout(features_BChw))
        logits_BKhw = at_least_float32(unary_BKhw)
        size = size_of(logits_BKhw)
        stride = math.sqrt(math.prod(size_of(image_B3HW)) / max(math.prod(size), 1))
        weights = {f"{name}_KK": self.field[name] for name in ("spatial_weight", "bilateral_weight", "compatibility")}
        scores_BKhw = mean_field(logits_BKhw, 255 * resize(image_B3HW, size).to(logits_BKhw), **self.now(stride), **weights)
        return scores_BKhw, {"unary": unary_BKhw}

    def now(self, stride: Tensor | float) -> dict[str, Any]:
        """The options as they now are: bandwidths that have been learned, in pixels of the logits, and the mode's iterations."""
        options = self.options | {name: self.field[name].exp() for name in THETAS if name in self.field}
        if not self.training:
            options["iterations"] = self.test_iterations
        return options | {name: options[name] / stride for name in ("theta_alpha", "theta_gamma")}


@torch.compiler.disable  # lists of near tiles, which differ from image to image
def mean_field(
    logits_BKHW: Tensor,
    image_B3HW: Tensor,
    *,
    spatial_weight_KK: Tensor,
    bilateral_weight_KK: Tensor,
    compatibility_KK: Tensor,
    **options: Any,
) -> Tensor:
    """The logits BKHW after `iterations` steps, of the given logits' type; half precision is computed in float32.

    The image is in [0, 255], of the logits' size; options: of `Options`, theta_alpha and theta_gamma in the image's pixels. A weight
    or compatibility of shape K stands for the diagonal matrix, and takes no matrix product.
    ValueError: sizes that differ, an option out of range.
    """
    chosen = Options(**options)
    _check(logits_BKHW, image_B3HW, chosen.iterations)
    _check_weights(logits_BKHW.shape[1], (spatial_weight_KK, bilateral_weight_KK, compatibility_KK))
    if logits_BKHW.is_meta:  # which tiles are near is not known there
        return logits_BKHW.clone()
    with without_autocast(logits_BKHW.device):
        unary_BKHW = at_least_float32(logits_BKHW)
        image_B3HW = image_B3HW.to(unary_BKHW)
        spatial, bilateral, outer = (weight_KK.to(unary_BKHW) for weight_KK in (spatial_weight_KK, bilateral_weight_KK, compatibility_KK))
        near_KK, alike_KK = chained(outer, spatial), chained(outer, bilateral)
        unary_BKN = unary_BKHW.flatten(2)
        features_B5N = bilateral_features(image_B3HW, chosen.theta_alpha, chosen.theta_beta)
        ones_11N = torch.ones_like(unary_BKN[:1, :1])
        near = normalised(Spatial(*size_of(logits_BKHW), chosen.theta_gamma, unary_BKHW), ones_11N, chosen.normalization)
        alike = normalised(FILTERS[chosen.filtering](features_B5N), ones_11N.expand(len(unary_BKN), -1, -1), chosen.normalization)
        scores_BKN = unary_BKN
        for _ in range(chosen.iterations):
            q_BKN = scores_BKN.softmax(1)
            scores_BKN = unary_BKN + times(near_KK, near(q_BKN)) + times(alike_KK, alike(q_BKN))
    return scores_BKN.view_as(unary_BKHW).to(logits_BKHW.dtype)


def chained(outer_KK: Tensor, inner_KK: Tensor) -> Tensor:
    """The product of two matrices, so that each message meets one matrix; K stands for a diagonal here and in what comes out."""
    if outer_KK.ndim == 1:
        return outer_KK[:, None] * inner_KK if inner_KK.ndim == 2 else outer_KK * inner_KK
    return outer_KK * inner_KK if inner_KK.ndim == 1 else product(outer_KK, inner_KK)


def times(weight_KK: Tensor, message_BKN: Tensor) -> Tensor:
    """The matrix, or the diagonal K, times each pixel's message."""
    return product(weight_KK, message_BKN) if weight_KK.ndim == 2 else weight_KK[:, None] * message_BKN


def bilateral_features(image_B3HW: Tensor, theta_alpha: Tensor | float, theta_beta: Tensor | float) -> Tensor:
    """(x / theta_alpha, y / theta_alpha, R, G, B / theta_beta) of every pixel: B5N."""
    height, width = size_of(image_B3HW)
    rows, columns = (torch.arange(length, device=image_B3HW.device, dtype=image_B3HW.dtype) for length in (height, width))
    places_2HW = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)])
    scaled_2HW = places_2HW / _of_type(theta_alpha, image_B3HW)
    return torch.cat([scaled_2HW.expand(len(image_B3HW), -1, -1, -1), image_B3HW / _of_type(theta_beta, image_B3HW)], 1).flatten(2)


def normalised(kernel: Callable[[Tensor], Tensor], ones_B1N: Tensor, normalization: str) -> Callable[[Tensor], Tensor]:
    """The kernel divided by its sums; they are computed once."""
    if normalization == "none":
        return kernel
    sums_B1N = kernel(ones_B1N) + TINY
    if normalization == "rows":
        return lambda values_BKN: kernel(values_BKN) / sums_B1N
    roots_B1N = sums_B1N.rsqrt()
    return lambda values_BKN: kernel(values_BKN * roots_B1N) * roots_B1N


def _of_type(theta: Tensor | float, like: Tensor) -> Tensor | float:
    return theta.to(like) if isinstance(theta, Tensor) else theta


def check_positive(values: Mapping[str, Tensor | float | None]) -> None:
    """ValueError for a number that is not positive."""
    for name, value in values.items():
        if value is None or (not isinstance(value, Tensor) and not 0 < value < math.inf):
            raise ValueError(f"crf mean_field: {name} must be positive, not {value}")


def _check(logits_BKHW: Tensor, image_B3HW: Tensor, iterations: int) -> None:
    if image_B3HW.shape != (len(logits_BKHW), 3, *size_of(logits_BKHW)):
        raise ValueError(f"crf mean_field: image {tuple(image_B3HW.shape)} does not fit logits {tuple(logits_BKHW.shape)}")
    if iterations < 0:
        raise ValueError(f"crf mean_field: iterations must not be negative, not {iterations}")


def _check_weights(classes: int, weights: tuple[Tensor, ...]) -> None:
    for weight_KK in weights:
        if weight_KK.shape not in ((classes, classes), (classes,)):
            raise ValueError(f"crf mean_field: weights and compatibility must be {classes} x {classes}, not {tuple(weight_KK.shape)}")
