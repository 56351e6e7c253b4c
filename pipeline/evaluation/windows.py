"""A network's logits for one image at one scale, from one pass or from windows, handed out by rows of any height.

Logits are held at the network's stride, and brought to full size in strips of rows whose bilinear weights are those of the whole resize.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from models.segmenter import Segmenter

VOID_SUPERPIXEL = -1


@dataclass(frozen=True)
class Network:
    """A segmenter in eval mode, and the colour in [0,1] that images are padded with: its backbone's mean."""

    model: Segmenter
    padding: tuple[float, float, float]


@dataclass(frozen=True)
class Scaled:
    """An image (3, H, W, uint8) and its superpixels (H, W) at one scale, on the network's device.

    Numbers in [0,1] are made of what a network sees at once: of a large image they would take four times its memory.
    """

    image_3HW: Tensor
    superpixels_HW: Tensor | None

    @classmethod
    def of(cls, network: Network, image: Image.Image, superpixels_HW: NDArray[np.int32] | None, size: tuple[int, int]) -> "Scaled":
        """Resize to (height, width): the image bilinearly with antialiasing, the superpixels to the nearest."""
        device = next(network.model.parameters()).device
        scaled = image if (image.height, image.width) == size else image.resize(size[::-1], Image.Resampling.BILINEAR)
        image_3HW = torch.from_numpy(np.array(scaled, np.uint8)).to(device).permute(2, 0, 1)
        if superpixels_HW is None:
            return cls(image_3HW, None)
        if superpixels_HW.shape != size:
            # The pixel under each centre, in integers: Pillow's floats go astray where a centre falls between two pixels.
            y, x = ((2 * np.arange(goal) + 1) * source // (2 * goal) for goal, source in zip(size, superpixels_HW.shape, strict=True))
            superpixels_HW = superpixels_HW[np.ix_(y, x)]
        return cls(image_3HW, torch.from_numpy(superpixels_HW.astype(np.int32, copy=False)).to(device))

    def mirrored(self) -> "Scaled":
        """Left and right exchanged."""
        return Scaled(self.image_3HW.flip(-1), None if self.superpixels_HW is None else self.superpixels_HW.flip(-1))

    def cut(self, y: int, x: int, size: tuple[int, int], *, mirror: bool) -> "Scaled":
        """The window of `size` at (y, x), less where the image ends; of the mirrored image, which is never made whole, if asked."""
        W = self.image_3HW.shape[2]
        columns = slice(max(W - x - size[1], 0), W - x) if mirror else slice(x, x + size[1])
        rows, superpixels_HW = slice(y, y + size[0]), self.superpixels_HW
        part = Scaled(self.image_3HW[:, rows, columns], None if superpixels_HW is None else superpixels_HW[rows, columns])
        return part.mirrored() if mirror else part


class Rows(Protocol):
    """Logits that are asked for by rows, from top to bottom."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    @property
    def align_corners(self) -> bool:
        """How they are to be resized."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the logits: K (stop-start) W."""
        ...


@dataclass(frozen=True)
class Whole:
    """The logits of one forward pass, at whatever stride the network gives them; the first rows may be gone."""

    logits_KHW: Tensor
    align_corners: bool
    gone: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.gone + self.logits_KHW.shape[1], self.logits_KHW.shape[2]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self.logits_KHW[:, start - self.gone : stop - self.gone]

    def below(self, row: int) -> "Whole":
        """The same without the rows above `row`, in memory of their own."""
        return self if row <= self.gone else Whole(self.logits_KHW[:, row - self.gone :].clone(), self.align_corners, row)


@dataclass
class Sliding:
    """Logits of windows, averaged where they overlap, at the image's size; windows run when a row first needs them.

    `told` is called after each window.
    """

    network: Network
    scaled: Scaled
    window: tuple[int, int]
    stride: tuple[int, int]
    mirror: bool = False
    told: Callable[[], None] | None = None
    align_corners: bool = False
    done: int = 0  # rows of windows that have run
    open: list[tuple[int, list[tuple[int, Whole]]]] = field(default_factory=list)  # y, then x and logits

    def __post_init__(self) -> None:
        _, *size = self.scaled.image_3HW.shape
        self.size = (size[0], size[1])
        self.tops, self.lefts = (starts(*axis) for axis in zip(self.size, self.window, self.stride, strict=True))
        self.run_row()  # so that align_corners is known

    def run_row(self) -> None:
        """Run the next row of windows."""
        y, row = self.tops[self.done], []
        for x in self.lefts:
            part = self.scaled.cut(y, x, self.window, mirror=self.mirror)
            missing = [side - length for side, length in zip(self.window, part.image_3HW.shape[1:], strict=True)]
            superpixels = part.superpixels_HW
            if superpixels is not None:
                superpixels = pad(superpixels, (0, missing[1], 0, missing[0]), value=VOID_SUPERPIXEL)
            image_3hw = padded(in_unit_range(part.image_3HW, self.network), missing, self.network.padding)
            row.append((x, forward(self.network.model, image_3hw, superpixels)))
            if self.told:
                self.told()
        self.align_corners = row[0][1].align_corners
        self.open.append((y, row))
        self.done += 1

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the blended logits; what lies above `start` is dropped."""
        self.open = [(y, row) for y, row in self.open if y + self.window[0] > start]
        while self.done < len(self.tops) and self.tops[self.done] < stop:
            self.open = [(y, [(x, self.remains(logits, start - y)) for x, logits in row]) for y, row in self.open]
            self.run_row()
        H, W = self.size
        first = self.open[0][1][0][1].logits_KHW
        total = first.new_zeros(len(first), stop - start, W)
        count = first.new_zeros(1, stop - start, W)
        for y, row in self.open:
            top, bottom = max(start, y), min(stop, y + self.window[0], H)
            for x, logits in row if top < bottom else []:
                place = (slice(None), slice(top - start, bottom - start), slice(x, x + self.window[1]))
                total[place] += resized_rows(logits, self.window, top - y, bottom - y)[:, :, : W - x]
                count[place] += 1
        return total.div_(count)

    def remains(self, logits: Whole, start: int) -> Whole:
        """What a window's rows from `start` on are made of."""
        if start <= 0:
            return logits
        low, _, _ = taps(logits.size[0], self.window[0], start, start + 1, logits.align_corners)
        return logits.below(int(low))


def starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, the last moved inside."""
    last = max(size - window, 0)
    return [min(step * stride, last) for step in range(-(-last // stride) + 1)]


def padded(image_3HW: Tensor, below_right: list[int], colour: tuple[float, float, float]) -> Tensor:
    """The image with rows below and columns to the right in one colour."""
    if not any(below_right):
        return image_3HW
    _, H, W = image_3HW.shape
    canvas = image_3HW.new_tensor(colour)[:, None, None].repeat(1, H + below_right[0], W + below_right[1])
    canvas[:, :H, :W] = image_3HW
    return canvas


def in_unit_range(image_3HW: Tensor, network: Network) -> Tensor:
    """A uint8 image in [0,1], of the network's type."""
    return image_3HW.contiguous().to(next(network.model.parameters()).dtype) / 255


def forward(model: Segmenter, image_3HW: Tensor, superpixels_HW: Tensor | None) -> Whole:
    """The network's logits for one image."""
    output = model(image_3HW[None], None if superpixels_HW is None else superpixels_HW[None])
    return Whole(output.logits_BKhw[0], output.align_corners)


def taps(size: int, goal: int, start: int, stop: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For rows [start, stop) of a bilinear resize from `size` to `goal` rows: the two source rows and the second's weight."""
    row = torch.arange(start, stop, dtype=torch.float64)
    corners = row * ((size - 1) / max(goal - 1, 1))
    source = corners if align_corners else ((row + 0.5) * (size / goal) - 0.5).clamp_min(0)
    low = source.long().clamp_max(size - 1)
    return low, (low + 1).clamp_max(size - 1), source - low


def resized_rows(source: Rows, goal: tuple[int, int], start: int, stop: int, *, flip: bool = False) -> Tensor:
    """Rows [start, stop) of `interpolate(source, goal, mode="bilinear")`, mirrored if asked: K (stop-start) W."""
    if source.size[0] == goal[0]:
        rows = source.rows(start, stop)
    else:
        low, high, weight = taps(source.size[0], goal[0], start, stop, source.align_corners)
        first = int(low[0])
        rows = source.rows(first, int(high[-1]) + 1)
        low, high, weight = (low - first).to(rows.device), (high - first).to(rows.device), weight.to(rows)
        rows = torch.lerp(rows[:, low], rows[:, high], weight[:, None])
    if flip:
        rows = rows.flip(-1)
    if source.size[1] != goal[1]:
        rows = interpolate(rows[None], (stop - start, goal[1]), mode="bilinear", align_corners=source.align_corners)[0]
    return rows
