"""Augmentation: one geometric draw for an image, its labels and its superpixels, and photometric jitter for the image alone.

An image is scaled by a factor drawn uniformly, cropped, and flipped with probability 1/2. A crop in which one class has 75 %
or more of the labelled pixels is drawn again, up to ten times. Only the crop is ever resized.

Pixel i of a side scaled from n to m has its centre at (i + 1/2) n/m in the source. Images are interpolated there (bilinear,
with the wider filter that shrinking needs), maps take the pixel that holds it, so the three stay aligned to the pixel.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.settings.schema import Data, Jitter
from pipeline.settings.strict import Pair

IGNORED = 255  # the label of void and of padding
NO_SUPERPIXEL = -1
LIMIT = 0.75  # the largest share of a crop's labelled pixels that one class may have
TRIES = 10


@dataclass(frozen=True)
class Geometry:
    """What is seen of an image. Sizes are (height, width) in pixels."""

    source: Pair  # of the image as it is stored
    scaled: Pair
    top: int  # of the crop in the scaled image
    left: int
    size: Pair  # of the crop, never beyond the scaled image
    flip: bool


def scaled_size(height: int, width: int, scale: float, ratio_base: Pair | None) -> Pair:
    """The (height, width) of an image at `scale`, at least one pixel.

    With `ratio_base` [w, h] the image is first fitted: its long side into the longer and its short side into the shorter of
    the two, ratio kept. That is the meaning of mmsegmentation's image scale, so that published settings carry over.
    """
    if ratio_base is not None:
        scale *= min(max(ratio_base) / max(height, width), min(ratio_base) / min(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def draw_geometry(rng: np.random.Generator, labels_HW: np.ndarray, data: Data) -> Geometry:
    """Draw scale, crop and flip for the pair with these labels."""
    height, width = source = labels_HW.shape
    scaled = scaled_size(height, width, rng.uniform(*data.scale), data.ratio_base)
    size = min(data.crop[0], scaled[0]), min(data.crop[1], scaled[1])
    flip = bool(rng.random() < 0.5)
    for _ in range(TRIES):
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(scaled, size, strict=True))
        geometry = Geometry(source=source, scaled=scaled, top=top, left=left, size=size, flip=flip)
        if size == scaled or not one_sided(map_view(labels_HW, geometry)):  # where all is seen, every draw is the same
            break
    return geometry


def one_sided(labels_HW: np.ndarray) -> bool:
    """Whether one class has `LIMIT` or more of the labelled pixels, or none is labelled."""
    counts = np.bincount(labels_HW.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return bool(counts.max() >= LIMIT * counts.sum())


def map_view(map_HW: np.ndarray, geometry: Geometry) -> np.ndarray:
    """What is seen of a map of labels or superpixels, in its own type: the nearest pixels."""
    (height, width), (scaled_height, scaled_width) = geometry.source, geometry.scaled
    # Whole numbers: floor((top + i + 1/2) height / scaled_height), without a rounding error at pixel borders.
    rows = (2 * (geometry.top + np.arange(geometry.size[0])) + 1) * height // (2 * scaled_height)
    columns = (2 * (geometry.left + np.arange(geometry.size[1])) + 1) * width // (2 * scaled_width)
    return map_HW.take(rows, axis=0).take(columns[::-1] if geometry.flip else columns, axis=1)


def image_view(image: Image.Image, geometry: Geometry) -> Tensor:
    """What is seen of an RGB image: float32 [3, h, w] in [0, 1]."""
    return unit(np.asarray(resized(image, geometry)))


def bands_view(image_3HW: np.ndarray, geometry: Geometry) -> Tensor:
    """The same of the image's bands, each contiguous: Pillow reads no more of their memory than is seen, so they may be a file's."""
    bands = [Image.frombuffer("L", band_HW.shape[::-1], band_HW, "raw", "L", 0, 1) for band_HW in image_3HW]
    return unit(np.stack([np.asarray(resized(band, geometry)) for band in bands], axis=-1))


def resized(image: Image.Image, geometry: Geometry) -> Image.Image:
    """What is seen of an image, or of one of its bands, in bytes."""
    (height, width), (scaled_height, scaled_width) = geometry.source, geometry.scaled
    down, right = height / scaled_height, width / scaled_width
    bottom, end = geometry.top + geometry.size[0], geometry.left + geometry.size[1]
    box = (geometry.left * right, geometry.top * down, min(end * right, width), min(bottom * down, height))
    seen = image.resize(geometry.size[::-1], Image.Resampling.BILINEAR, box=box)
    return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else seen


def unit(pixels_HW3: np.ndarray) -> Tensor:
    """Bytes as float32 [3, h, w] in [0, 1], in memory with the channels innermost as before: jitter rounds by layout."""
    return torch.from_numpy(pixels_HW3.astype(np.float32)).div_(255).permute(2, 0, 1)


def draw_jitter(rng: np.random.Generator, jitter: Jitter) -> list[tuple[str, float]]:
    """The adjustments of an image, in a drawn order: brightness, contrast and saturation as factors, hue as a shift."""
    ranges = {name: (1 - reach, 1 + reach) for name, reach in vars(jitter).items() if name != "hue"}
    ranges["hue"] = (-jitter.hue, jitter.hue)
    draws = [(name, float(rng.uniform(*bounds))) for name, bounds in ranges.items()]
    return [draws[index] for index in rng.permutation(len(draws)) if getattr(jitter, draws[index][0]) > 0]


def adjusted(image_3HW: Tensor, adjustments: list[tuple[str, float]]) -> Tensor:
    """An image in [0, 1] with the adjustments made one after the other."""
    from torchvision.transforms.v2 import functional  # slow to import, and only jitter needs it

    apply = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    for name, value in adjustments:
        image_3HW = apply[name](image_3HW, value)
    return image_3HW


def padded_image(image_3HW: Tensor, crop: Pair, mean: tuple[float, float, float]) -> Tensor:
    """The image, filled up at the bottom and the right to `crop` (height, width) with the colour `mean` in [0, 1]."""
    canvas_3HW = torch.tensor(mean, dtype=torch.float32)[:, None, None].repeat(1, *crop)
    canvas_3HW[:, : image_3HW.shape[1], : image_3HW.shape[2]] = image_3HW
    return canvas_3HW


def padded_map(map_HW: np.ndarray, crop: Pair, value: int) -> Tensor:
    """The map as int64, filled up at the bottom and the right to `crop` (height, width) with `value`."""
    canvas_HW = torch.full(crop, value, dtype=torch.int64)
    canvas_HW[: map_HW.shape[0], : map_HW.shape[1]] = torch.from_numpy(map_HW.astype(np.int64))
    return canvas_HW
