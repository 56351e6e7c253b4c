"""A toy network, a picture for it, and the plain form of its prediction, which holds everything at full size in float64."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import floor
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from pipeline.evaluation.inference import scaled_size
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Evaluation

PADDING = (0.4, 0.5, 0.3)


class Toy(nn.Module):
    """A network that depends on place, neighbours and superpixels; it counts its calls and the sizes it saw."""

    def __init__(self, classes: int, stride: int, align_corners: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, classes, 5, stride=stride, padding=2).double()
        nn.init.normal_(self.convolution.weight)
        self.align_corners = align_corners
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> SimpleNamespace:
        self.seen.append(tuple(image_B3HW.shape[2:]))
        marks_BHW = torch.zeros_like(image_B3HW[:, 0]) if superpixels_BHW is None else superpixels_BHW.to(image_B3HW) / 10
        logits_BKhw = self.convolution(torch.cat([image_B3HW, marks_BHW[:, None]], 1))
        return SimpleNamespace(logits_BKhw=logits_BKhw, align_corners=self.align_corners)


def evaluation(**changes: object) -> Evaluation:
    values = {"name": "e", "of": "r", "split": "val", "mode": "whole", "launch": Launch(name="local", backend="local")}
    return Evaluation(**values | changes)


def picture(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    random = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(random.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8))
    superpixels_HW = (np.arange(height)[:, None] // 7 * 5 + np.arange(width) // 9).astype(np.int32)
    return coarse.resize((width, height), Image.Resampling.BICUBIC), superpixels_HW


def plain_logits(model: Toy, image_B3HW: Tensor, superpixels_BHW: Tensor | None, how: Evaluation) -> Tensor:
    """All logits of one view, before they are brought to the label's size."""
    if how.mode == "whole":
        return model(image_B3HW, superpixels_BHW).logits_BKhw
    assert how.window
    assert how.stride
    H, W = image_B3HW.shape[2:]
    below, right = max(how.window[0] - H, 0), max(how.window[1] - W, 0)
    canvas = torch.tensor(PADDING).double()[None, :, None, None].repeat(1, 1, H + below, W + right)
    canvas[:, :, :H, :W] = image_B3HW
    superpixels_BHW = None if superpixels_BHW is None else pad(superpixels_BHW, (0, right, 0, below), value=-1)
    total, count = 0.0, torch.zeros(1, 1, *canvas.shape[2:])
    tops = {min(y, canvas.shape[2] - how.window[0]) for y in range(0, canvas.shape[2], how.stride[0])}
    lefts = {min(x, canvas.shape[3] - how.window[1]) for x in range(0, canvas.shape[3], how.stride[1])}
    # A window that starts where the one before already reached the end is moved onto the last one, which the set drops.
    for y, x in product(sorted(tops), sorted(lefts)):
        place = (..., slice(y, y + how.window[0]), slice(x, x + how.window[1]))
        logits = model(canvas[place], None if superpixels_BHW is None else superpixels_BHW[place]).logits_BKhw
        full = torch.zeros(1, logits.shape[1], *canvas.shape[2:]).double()
        full[place] = interpolate(logits, how.window, mode="bilinear", align_corners=model.align_corners)
        total = total + full
        count[place] += 1
    return (total / count)[..., :H, :W]


@torch.inference_mode()
def plain_probabilities(
    model: Toy, image: Image.Image, superpixels_HW: np.ndarray | None, how: Evaluation, scales: Sequence[float], flip: bool
) -> Tensor:
    """The mean softmax at the image's size, every tensor whole."""
    views = []
    for scale, mirrored in product(scales, (False, True) if flip else (False,)):
        height, width = scaled_size((image.height, image.width), how.short_side, scale)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        image_B3HW = torch.tensor(pixels).permute(2, 0, 1)[None].double() / 255
        superpixels_BHW = None
        if superpixels_HW is not None:
            rows = [floor(Fraction(2 * row + 1, 2) * image.height / height) for row in range(height)]
            columns = [floor(Fraction(2 * column + 1, 2) * image.width / width) for column in range(width)]
            superpixels_BHW = torch.tensor(superpixels_HW[rows][:, columns])[None]
        if mirrored:
            image_B3HW = image_B3HW.flip(-1)
            superpixels_BHW = None if superpixels_BHW is None else superpixels_BHW.flip(-1)
        logits = plain_logits(model, image_B3HW, superpixels_BHW, how)
        full = interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=model.align_corners).softmax(1)
        views.append(full.flip(-1) if mirrored else full)
    return torch.stack(views).mean(0)[0]
