"""Predict one image: whole or by sliding window, at one scale and averaged over scales and flips, in bounded memory.

The softmax is averaged at the label's own size. A full-size K x H x W tensor is what breaks memory (150 classes at
2200 x 1650 are 2 GB), so there is one at most, the running sum; all else is held at the network's stride, and is brought to
full size in strips of rows, whose bilinear weights are those of the whole resize. A dense CRF cannot work in strips: an evaluation
that has one holds a few tensors of that size while it runs.
"""

import time
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
from pipeline.dense_crf import refined
from pipeline.schema import DenseCRF, Evaluation

STRIP = {"cpu": 2**18, "cuda": 2**24}  # elements (K x rows x W) of a strip: a CPU's cache, a GPU's many cores
VOID_SUPERPIXEL = -1


@dataclass(frozen=True)
class Prediction:
    """Class ids (H, W) uint8 of the two protocols, and the seconds that the single-scale one took."""

    single_HW: NDArray[np.uint8]
    multi_HW: NDArray[np.uint8]
    seconds: float


@dataclass(frozen=True)
class Network:
    """A segmenter in eval mode, and the colour in [0,1] that images are padded with: its backbone's mean."""

    model: Segmenter
    padding: tuple[float, float, float]


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
    """The logits of one forward pass, at whatever stride the network gives them."""

    logits_KHW: Tensor
    align_corners: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.logits_KHW.shape[1], self.logits_KHW.shape[2]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self.logits_KHW[:, start:stop]


@dataclass
class Sliding:
    """Logits of windows, averaged where they overlap, at the image's size; windows run when a row first needs them.

    The image is uint8, or in [0,1]. `told` is called after each window.
    """

    network: Network
    image_3HW: Tensor
    superpixels_HW: Tensor | None
    window: tuple[int, int]
    stride: tuple[int, int]
    told: Callable[[], None] | None = None
    align_corners: bool = False
    done: int = 0  # rows of windows that have run
    open: list[tuple[int, list[tuple[int, Whole]]]] = field(default_factory=list)  # y, then x and logits

    def __post_init__(self) -> None:
        self.size = (self.image_3HW.shape[1], self.image_3HW.shape[2])
        self.tops = starts(self.size[0], self.window[0], self.stride[0])
        self.lefts = starts(self.size[1], self.window[1], self.stride[1])
        self.run_row()  # so that align_corners is known

    def run_row(self) -> None:
        """Run the next row of windows."""
        y, (h, w) = self.tops[self.done], self.window
        row = []
        for x in self.lefts:
            cut = (slice(y, y + h), slice(x, x + w))
            part_3hw = in_unit_range(self.image_3HW[(slice(None), *cut)], self.network)
            missing = [side - length for side, length in zip(self.window, part_3hw.shape[1:], strict=True)]
            superpixels = None if self.superpixels_HW is None else self.superpixels_HW[cut]
            if superpixels is not None:
                superpixels = pad(superpixels, (0, missing[1], 0, missing[0]), value=VOID_SUPERPIXEL)
            row.append((x, forward(self.network.model, padded(part_3hw, missing, self.network.padding), superpixels)))
            if self.told:
                self.told()
        self.align_corners = row[0][1].align_corners
        self.open.append((y, row))
        self.done += 1

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the blended logits; windows that end above `start` are dropped."""
        self.open = [(y, row) for y, row in self.open if y + self.window[0] > start]
        while self.done < len(self.tops) and self.tops[self.done] < stop:
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


def scaled_size(size: tuple[int, int], short_side: int | None, scale: float) -> tuple[int, int]:
    """Height and width of an image fitted to `short_side` (null: as it is) and then scaled."""
    factor = scale * (short_side / min(size) if short_side else 1.0)
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


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


def in_unit_range(image_3HW: Tensor, network: Network) -> Tensor:
    """A uint8 image in [0,1], of the network's type; another as it is."""
    if image_3HW.dtype != torch.uint8:
        return image_3HW
    return image_3HW.contiguous().to(next(network.model.parameters()).dtype) / 255


def look(network: Network, scaled: Scaled, evaluation: Evaluation, told: Callable[[], None] | None = None) -> Rows:
    """What the network says of an image: all of it at once, or by windows, each of which is `told`."""
    if evaluation.mode == "whole":
        return forward(network.model, in_unit_range(scaled.image_3HW, network), scaled.superpixels_HW)
    assert evaluation.window is not None
    assert evaluation.stride is not None
    return Sliding(network, scaled.image_3HW, scaled.superpixels_HW, evaluation.window, evaluation.stride, told)


def strips(classes: int, size: tuple[int, int], device: torch.device) -> list[tuple[int, int]]:
    """Bands of rows [start, stop) of a K x H x W tensor, each of about `STRIP` elements."""
    rows = max(1, STRIP.get(device.type, STRIP["cuda"]) // (classes * size[1]))
    return [(start, min(start + rows, size[0])) for start in range(0, size[0], rows)]


@torch.inference_mode()
def predict(
    network: Network,
    image: Image.Image,
    superpixels_HW: NDArray[np.int32] | None,
    evaluation: Evaluation,
    classes: int,
    keep: Callable[[int, Tensor], None] | None = None,
) -> Prediction:
    """Predict an RGB image at its own size. `keep` gets the probabilities of the multi-scale protocol: (first row, K R W), in order.

    Single scale is scale 1 without flip; multi is the mean softmax over `evaluation.scales`, each mirrored too with
    `evaluation.flip`. They share the view that both have, and are one where that is all. `evaluation.dense_crf` refines the
    probabilities of each.
    """
    size = (image.height, image.width)
    flips = (False, True) if evaluation.flip else (False,)
    several, crf = (*evaluation.scales, *flips) != (1.0, False), evaluation.dense_crf
    device, dtype = (weights := next(network.model.parameters())).device, weights.dtype
    total_KHW = torch.zeros(classes, *size, device=device, dtype=dtype) if several or crf else None
    best_HW = torch.empty(size, dtype=torch.uint8, device=device)
    single_HW, seconds = best_HW.cpu().numpy(), 0.0
    for scale in [1.0, *(scale for scale in evaluation.scales if scale != 1.0)]:
        began = time.perf_counter()
        scaled = Scaled.of(network, image, superpixels_HW, scaled_size(size, evaluation.short_side, scale))
        for flip in flips if scale in evaluation.scales else (False,):
            source = look(network, scaled.mirrored() if flip else scaled, evaluation)
            for start, stop in strips(classes, size, device):
                logits_KRW = resized_rows(source, size, start, stop, flip=flip)
                if (scale, flip) == (1.0, False):
                    best_HW[start:stop] = logits_KRW.max(0).indices  # argmax takes three times as long
                if total_KHW is not None and (scale in evaluation.scales or crf):
                    total_KHW[:, start:stop] += logits_KRW.softmax(0)
                elif keep and total_KHW is None:
                    keep(start, logits_KRW.softmax(0))
            del source  # before the next view's
            if (scale, flip) == (1.0, False):
                if total_KHW is not None and crf:
                    best_HW = refined(total_KHW, image, crf)
                    total_KHW *= float(1.0 in evaluation.scales)  # else the mean begins after this view
                single_HW = best_HW.cpu().numpy().copy()  # waits for the device
                seconds = time.perf_counter() - began
    if total_KHW is None or not several:
        return Prediction(single_HW, single_HW, seconds)
    total_KHW /= len(evaluation.scales) * len(flips)
    if keep:
        for start, stop in strips(classes, size, device):
            keep(start, total_KHW[:, start:stop])
    return Prediction(single_HW, classes_of(total_KHW, image, crf).cpu().numpy(), seconds)


def classes_of(probabilities_KHW: Tensor, image: Image.Image, crf: DenseCRF | None) -> Tensor:
    """The most probable classes H W, uint8, after the CRF if there is one."""
    if crf:
        return refined(probabilities_KHW, image, crf)
    K, H, W = probabilities_KHW.shape
    parts = [probabilities_KHW[:, start:stop].max(0).indices for start, stop in strips(K, (H, W), probabilities_KHW.device)]
    return torch.cat(parts).to(torch.uint8)
