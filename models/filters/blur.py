"""Working at a lower resolution, in bands of rows: means over blocks of pixels, and back by bilinear interpolation.

What happens at full size between two small maps is done for one band after the other, forwards and again for the gradient: no map of
full size is kept, and on a CPU a band stays in the cache.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.parts.layers import resize, size_of

BAND = {"cpu": 2**19, "cuda": 2**26}  # elements of a band: a CPU's cache, a GPU's many cores


class Blur(NamedTuple):
    """Blocks of factor x factor pixels on an image of `size`. What is missing to whole blocks is missing on both sides, above first.

    A band is a range of small rows.
    """

    size: tuple[int, int]
    factor: int

    @property
    def small(self) -> tuple[int, int]:
        """Height and width in blocks."""
        return -(-self.size[0] // self.factor), -(-self.size[1] // self.factor)

    @property
    def before(self) -> tuple[int, int]:
        """Rows and columns that are missing (above, on the left)."""
        above, left = (math.ceil(-length % self.factor / 2) for length in self.size)
        return above, left

    @property
    def whole(self) -> range:
        """All rows as one band."""
        return range(self.small[0])

    def rows(self, band: range) -> slice:
        """The full-size rows of a band."""
        above = self.before[0]
        return slice(max(0, band.start * self.factor - above), min(self.size[0], band.stop * self.factor - above))

    def halo(self, band: range) -> slice:
        """The small rows that a band's full-size rows are interpolated from."""
        reach = 0 if self.factor == 1 else 1
        return slice(max(0, band.start - reach), min(self.small[0], band.stop + reach))

    def lowered(self, x_BCRW: Tensor, band: range) -> Tensor:
        """The means of the blocks, over the pixels that there are; x has the band's full-size rows."""
        if self.factor == 1:
            return x_BCRW
        (above, left), rows = self.before, self.rows(band)
        below, right = band.stop * self.factor - above - rows.stop, self.small[1] * self.factor - left - self.size[1]
        missing = (left, right, rows.start - band.start * self.factor + above, below)
        if not any(missing):
            return F.avg_pool2d(x_BCRW, self.factor)
        present_11RW = F.pad(x_BCRW.new_ones(1, 1, *size_of(x_BCRW)), missing)
        return F.avg_pool2d(F.pad(x_BCRW, missing), self.factor) / F.avg_pool2d(present_11RW, self.factor)

    def raised(self, x_BChw: Tensor, band: range) -> Tensor:
        """Bilinear interpolation to the band's full-size rows; x has the rows of its halo."""
        if self.factor == 1:
            return x_BChw
        (above, left), rows = self.before, self.rows(band)
        x_BCRW = resize(x_BChw, (self.factor * x_BChw.shape[-2], self.factor * x_BChw.shape[-1]))
        first = rows.start - self.halo(band).start * self.factor + above
        return x_BCRW[..., first : first + rows.stop - rows.start, left : left + self.size[1]]


Body = Callable[[list[Tensor], list[Tensor], list[Tensor], range], list[Tensor]]


def by_bands(
    body: Body, blur: Blur, full: Sequence[Tensor], small: Sequence[Tensor], rest: Sequence[Tensor], *, raises: bool
) -> list[Tensor]:
    """`body(full, small, rest, band)` of all bands joined: maps of full size where it `raises`, else small ones.

    In a band, full-size maps (BCHW) are cut to its rows, small ones (BChw) to its halo; `rest` is given as it stands.
    """
    return list(_ByBands.apply(body, blur, raises, (len(full), len(small)), *full, *small, *rest))


class _ByBands(Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, body: Body, blur: Blur, raises: bool, counts: tuple[int, int], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.work = body, blur, raises, counts
        joined: list[Tensor] = []
        for band in _bands(tensors, blur):
            found = body(*_arguments(_cut(tensors, blur, counts, band), counts), band)
            if not joined:
                joined = [part.new_empty(*part.shape[:2], blur.size[0] if raises else blur.small[0], part.shape[3]) for part in found]
            for whole, part in zip(joined, found, strict=True):
                whole[:, :, _place(blur, raises, band)] = part
        return tuple(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        body, blur, raises, counts = ctx.work
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[4:]
        totals = [torch.zeros_like(tensor) if need else None for tensor, need in zip(tensors, needed, strict=True)]
        for band in _bands(tensors, blur):
            cut = [part.detach().requires_grad_(need) for part, need in zip(_cut(tensors, blur, counts, band), needed, strict=True)]
            with torch.enable_grad():
                found = body(*_arguments(cut, counts), band)
            used = [index for index, part in enumerate(found) if part.requires_grad]  # a map may come from constants alone
            received = [gradients[index][:, :, _place(blur, raises, band)] for index in used]
            given = torch.autograd.grad([found[index] for index in used], [part for part in cut if part.requires_grad], received)
            places = _cut([total for total in totals if total is not None], blur, _counts(needed, counts), band)
            for place, gradient in zip(places, given, strict=True):
                place += gradient
        return None, None, None, None, *totals


def _bands(tensors: Sequence[Tensor], blur: Blur) -> list[range]:
    """All rows in bands of about BAND elements of the first tensor, which is of full size."""
    width = tensors[0].numel() // blur.size[0] * blur.factor
    rows = max(1, BAND.get(tensors[0].device.type, BAND["cuda"]) // max(1, width))
    return [range(start, min(start + rows, blur.small[0])) for start in range(0, blur.small[0], rows)]


def _place(blur: Blur, raises: bool, band: range) -> slice:
    return blur.rows(band) if raises else slice(band.start, band.stop)


def _cut(tensors: Sequence[Tensor], blur: Blur, counts: tuple[int, int], band: range) -> list[Tensor]:
    """Views: the band's rows of the full-size maps, its halo of the small ones, the rest whole."""
    full, small = counts
    slices = [blur.rows(band)] * full + [blur.halo(band)] * small
    return [tensor[:, :, place] for tensor, place in zip(tensors, slices, strict=False)] + list(tensors[full + small :])


def _arguments(tensors: list[Tensor], counts: tuple[int, int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    full, both = counts[0], sum(counts)
    return tensors[:full], tensors[full:both], tensors[both:]


def _counts(needed: Sequence[bool], counts: tuple[int, int]) -> tuple[int, int]:
    """How many of the full-size and of the small maps need a gradient."""
    return sum(needed[: counts[0]]), sum(needed[counts[0] : sum(counts)])
