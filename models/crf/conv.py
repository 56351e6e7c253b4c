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
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.filters.blur import Blur, by_bands
from models.filters.precision import product, without_autocast
from models.filters.window import Window, window_filter, window_kernel
from models.layers import Undecayed, at_least_float32, classifier, resize, size_of

TINY = 1e-20


class Conv(nn.Module):
    """Dropout and classifier, then ConvCRF on their logits at the image's size divided by `stride`; thetas in pixels of the image.

    trainable: thetas, appearance, smoothness and the weight of each class learn, as logarithms; what starts at 0 stays 0.
    compatibility: +C. position: +T, [height, width] of the map that is filtered, the only size that it then takes.
    test_iterations: in eval mode, null for as many as in training.
    """

    needs_superpixels = False
    extras: tuple[str, ...] = ("unary",)

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        dropout: float = 0.1,
        stride: int = 1,
        filter_size: int = 11,
        blur: int = 4,
        iterations: int = 5,
        test_iterations: int | None = None,
        theta_alpha: float | None = None,
        theta_beta: float = 13.0,
        theta_gamma: float = 3.0,
        appearance: float = 10.0,
        smoothness: float = 3.0,
        weight: float = 0.2,
        start: Literal["softmax", "logits"] = "softmax",
        normalization: Literal["none", "symmetric"] = "none",
        trainable: bool = True,
        compatibility: bool = False,
        position: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_options(filter_size, blur, iterations, start, normalization)
        values = {"theta_beta": theta_beta, "theta_gamma": theta_gamma, "weight": weight}
        values |= {} if theta_alpha is None else {"theta_alpha": theta_alpha}
        counts = {"stride": stride, "iterations": iterations, "test_iterations": iterations if test_iterations is None else test_iterations}
        for name, value in {**counts, **values}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"crf conv: {name} must be positive, not {value}")
        if not (min(appearance, smoothness) >= 0 and 0 < max(appearance, smoothness) < math.inf):
            raise ValueError(f"crf conv: appearance and smoothness must not be negative, nor both 0, not {appearance} and {smoothness}")
        if position is not None and (len(position) != 2 or min(position) < 1):
            raise ValueError(f"crf conv: position must be [height, width], not {position}")
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)
        self.stride, self.iterations, self.test_iterations = stride, iterations, counts["test_iterations"]
        self.filter_size, self.blur, self.start, self.normalization = filter_size, blur, start, normalization
        self.values = values | {"appearance": appearance, "smoothness": smoothness}
        learned = {name: math.log(value) for name, value in self.values.items() if value > 0 and trainable}
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
        field = dict(self.field.items())
        now = {name: field[name].exp() if name in field else value for name, value in self.values.items()}
        scores_BKHW = conv_crf(
            logits_BKHW, 255 * resize(image_B3HW, (height, width)).to(logits_BKHW),
            filter_size=self.filter_size, blur=self.blur, iterations=self.iterations if self.training else self.test_iterations,
            theta_beta=now["theta_beta"], theta_gamma=now["theta_gamma"] / self.stride,
            theta_alpha=now["theta_alpha"] / self.stride if "theta_alpha" in now else None,
            appearance=now["appearance"], smoothness=now["smoothness"], weight=now["weight"],
            start=self.start, normalization=self.normalization,
            compatibility_KK=field.get("compatibility"), position_2HW=field.get("position"),
        )  # fmt: skip
        return scores_BKHW, {"unary": unary_BKhw}


@torch.compiler.disable  # loops over taps and bands, which a compiler would unroll for half a minute
def conv_crf(
    unary_BKHW: Tensor,
    image_B3HW: Tensor,
    *,
    filter_size: int = 11,
    blur: int = 4,
    iterations: int = 5,
    theta_beta: Tensor | float = 13.0,
    theta_gamma: Tensor | float = 3.0,
    theta_alpha: Tensor | float | None = None,
    appearance: Tensor | float = 10.0,
    smoothness: Tensor | float = 3.0,
    weight: Tensor | float = 0.2,
    start: Literal["softmax", "logits"] = "softmax",
    normalization: Literal["none", "symmetric"] = "none",
    compatibility_KK: Tensor | None = None,
    position_2HW: Tensor | None = None,
) -> Tensor:
    """The scores BKHW after `iterations` steps (none: U), of the unary's type; half precision is computed in float32.

    unary: logits; the image in [0, 255], of their size. Thetas in pixels (beta: in colours) and weights are numbers or scalar
    tensors, `weight` also one value for each class. position: rows and columns in pixels in place of those of the smoothness kernel.
    normalization: symmetric divides each kernel by the roots of its sums, D^-1/2 K D^-1/2.
    ValueError: sizes that do not fit, an option out of range.
    """
    check_options(filter_size, blur, iterations, start, normalization)
    for theta in (
        theta_beta,
        theta_gamma,
        1.0 if theta_alpha is None else theta_alpha,
    ):  # what learns is not read: that would wait for a GPU
        if not isinstance(theta, Tensor) and not 0 < theta < math.inf:
            raise ValueError(f"crf conv: thetas must be positive, not {theta}")
    check_sizes(unary_BKHW, image_B3HW, compatibility_KK, position_2HW)
    with without_autocast(unary_BKHW.device):
        log_BKHW = at_least_float32(unary_BKHW).log_softmax(1)
        places_12HW = grid(size_of(log_BKHW), log_BKHW)[None]
        colours_BCHW = image_B3HW.to(log_BKHW) / scalar(theta_beta, log_BKHW)
        if theta_alpha is not None:
            own_12HW = places_12HW / scalar(theta_alpha, log_BKHW)
            colours_BCHW = torch.cat([colours_BCHW, own_12HW.expand(len(colours_BCHW), -1, -1, -1)], 1)
        if position_2HW is not None:
            places_12HW = position_2HW.to(log_BKHW)[None]
        blocks = Blur(size_of(log_BKHW), blur)
        features = [blocks.lowered(map_BCHW, blocks.whole) for map_BCHW in (colours_BCHW, places_12HW / scalar(theta_gamma, log_BKHW))]
        weights = [scalar(appearance, log_BKHW), scalar(smoothness, log_BKHW)]
        field = Field(
            log_BKHW=log_BKHW,
            terms=terms(features, weights, filter_size, blocks, normalization),
            blur=blocks,
            weight_K11=tensor(weight, log_BKHW).reshape(-1, 1, 1),
            compatibility_KK=None if compatibility_KK is None else compatibility_KK.to(log_BKHW),
        )
        return field.scores_after(iterations, start).to(unary_BKHW.dtype)


class Term(NamedTuple):
    """A part of K: the kernel of all its taps, and where it is normalised D^-1/2 and what it is then weighted by."""

    kernel_BTL: Tensor
    window: Window
    root_B1HW: Tensor | None = None
    weight: Tensor | None = None


class Field(NamedTuple):
    """What stays the same through the iterations. Small maps are those of the pixels that are left after the blur, one for each term."""

    log_BKHW: Tensor
    terms: Sequence[Term]
    blur: Blur
    weight_K11: Tensor
    compatibility_KK: Tensor | None

    def scores_after(self, iterations: int, start: str) -> Tensor:
        """The scores BKHW."""
        if not iterations:
            return self.log_BKHW
        begin = (lambda log_BKHW: log_BKHW) if start == "logits" else torch.exp
        small = by_bands(lambda full, _, __, band: self.lowered(begin(full[0]), full[1:], band), self.blur, self.full, [], [], raises=False)
        for _ in range(iterations - 1):
            small = by_bands(self.updated, self.blur, self.full, self.messages(small), [self.weight_K11], raises=False)
        return by_bands(self.scores, self.blur, self.full, self.messages(small), [self.weight_K11], raises=True)[0]

    @property
    def full(self) -> list[Tensor]:
        """U, and D^-1/2 of each term where it is normalised."""
        return [self.log_BKHW, *(term.root_B1HW for term in self.terms if term.root_B1HW is not None)]

    def messages(self, small: Sequence[Tensor]) -> list[Tensor]:
        """M of each term, as small maps."""
        found = []
        for q_BKhw, term in zip(small, self.terms, strict=True):
            m_BKhw = window_filter(q_BKhw, term.kernel_BTL, term.window)
            if self.compatibility_KK is not None:
                m_BKhw = m_BKhw + product(self.compatibility_KK, m_BKhw.flatten(2)).view_as(m_BKhw)
            found.append(m_BKhw if term.weight is None else term.weight * m_BKhw)
        return found

    def scores(self, full: list[Tensor], messages: list[Tensor], weight: list[Tensor], band: range) -> list[Tensor]:
        """(1 - weight) U + weight M in a band."""
        log_BKRW, *roots = full
        raised = [self.blur.raised(m_BKhw, band) for m_BKhw in messages]
        if roots:
            raised = [root * m_BKRW for root, m_BKRW in zip(roots, raised, strict=True)]
        return [torch.lerp(log_BKRW, raised[0] if len(raised) == 1 else raised[0] + raised[1], weight[0])]

    def updated(self, full: list[Tensor], messages: list[Tensor], weight: list[Tensor], band: range) -> list[Tensor]:
        """The next Q in a band, as small maps."""
        return self.lowered(self.scores(full, messages, weight, band)[0].softmax(1), full[1:], band)

    def lowered(self, q_BKRW: Tensor, roots: list[Tensor], band: range) -> list[Tensor]:
        """Q of a band as each term's kernel takes it."""
        return [self.blur.lowered(root * q_BKRW, band) for root in roots] or [self.blur.lowered(q_BKRW, band)]


def terms(features: Sequence[Tensor], weights: Sequence[Tensor], filter_size: int, blur: Blur, normalization: str) -> list[Term]:
    """One term for all, or one for each kernel with its own normalisation. features: small maps."""
    window = Window.of(blur.small, filter_size)
    if normalization == "none":
        return [Term(window_kernel(features, weights, window), window)]
    found = []
    for feature_BChw, weight in zip(features, weights, strict=True):
        kernel_BTL = window_kernel([feature_BChw], [torch.ones_like(weight)], window)
        sums_B1hw = window_filter(torch.ones_like(feature_BChw[:, :1]), kernel_BTL, window)
        found.append(Term(kernel_BTL, window, (blur.raised(sums_B1hw, blur.whole) + TINY).rsqrt(), weight))
    return found


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


def check_options(filter_size: int, blur: int, iterations: int, start: str, normalization: str) -> None:
    """ValueError for an option out of range."""
    if filter_size < 1 or filter_size % 2 == 0:
        raise ValueError(f"crf conv: filter_size must be odd and positive, not {filter_size}")
    if blur < 1 or iterations < 0:
        raise ValueError(f"crf conv: blur must be at least 1 and iterations not negative, not {blur} and {iterations}")
    if start not in ("softmax", "logits"):
        raise ValueError(f"crf conv: start must be softmax or logits, not {start!r}")
    if normalization not in ("none", "symmetric"):
        raise ValueError(f"crf conv: normalization must be none or symmetric, not {normalization!r}")


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
