"""The iterations of ConvCRF (models/crf/conv.py) on finished kernels, and what stays the same through them.

    M = sum over terms of weight D^-1/2 K D^-1/2 Q          M <- M + C M          scores = (1 - weight) U + weight M

Without normalisation D = 1 and one term serves all kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.filters.blur import Blur, by_bands
from models.filters.window import Window, window_filter, window_kernel
from models.kernels.precision import product

TINY = 1e-20


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
