"""The picture while it is painted, twice as large as it comes out: its pixels, and the camera that it is seen through."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

OVER = 2  # canvas pixels per pixel, each way
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, VEHICLE, PERSON, POLE, SIGN = range(9)


class Patch(NamedTuple):
    """The canvas pixels around an object at depth `z`: `u` metres to its right [1, w], `v` metres above the ground [h, 1]."""

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray
    z: float


class Canvas:
    """The picture, and the camera that it is seen through. Lengths are metres; rows and columns are canvas pixels."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.image_HW3 = np.zeros((height * OVER, width * OVER, 3), np.float32)
        self.labels_HW = np.full((height * OVER, width * OVER), SKY, np.uint8)
        self.focal = height * OVER * rng.uniform(0.8, 1.1)
        self.horizon = height * OVER * rng.uniform(0.36, 0.52)
        self.centre = width * OVER / 2 + height * OVER * rng.uniform(-0.25, 0.25)
        self.eye = rng.uniform(1.5, 2.4)  # above the ground
        self.lane = rng.uniform(-1.8, 1.8)  # the camera's place beside the middle of the road
        self.road, self.walk = rng.uniform(3.2, 5.5), rng.uniform(1.5, 3.5)  # half the road's width, the pavement's
        self.sun = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)  # how much brighter what faces right is
        warm, brightness = rng.uniform(-0.08, 0.12), rng.uniform(0.65, 1.1)
        self.tint = np.float32(brightness) * np.array((1 + warm, 1, 1 - warm), np.float32)
        self.haze = np.array((0.72, 0.76, 0.80), np.float32) * np.float32(rng.uniform(0.8, 1.1))
        self.reach = rng.uniform(60, 300)  # depth of 63 % haze

    def hazed(self, colour: np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """A colour as it looks from a distance; `z` broadcasts against the colour's channels."""
        share = np.exp(-np.asarray(z, np.float32) / np.float32(self.reach))
        return self.haze + share * (colour - self.haze)

    def patch(self, x: float, z: float, reach: float, top: float) -> Patch:
        """The pixels of an object on the ground, `x` right of the road's middle, `reach` to both sides and `top` high."""
        scale = self.focal / z
        middle, base = self.centre + scale * (x - self.lane), self.horizon + scale * self.eye
        rows = slice(*np.clip([int(base - scale * top), int(base) + 2], 0, len(self.labels_HW)))
        columns = slice(*np.clip([int(middle - scale * reach), int(middle + scale * reach) + 2], 0, self.labels_HW.shape[1]))
        u = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle) / scale
        v = (base - np.arange(rows.start, rows.stop, dtype=np.float32) - 0.5) / scale
        return Patch(rows, columns, u.astype(np.float32)[None], v.astype(np.float32)[:, None], z)

    def paint(self, patch: Patch, mask_hw: np.ndarray, colour: ArrayLike, label: int, round_: float = 0.0) -> None:
        """Colour where the mask holds, brighter towards the sun over a body `round_` metres wide to each side (0: flat)."""
        shade = 1 + np.float32(self.sun) * np.clip(patch.u / round_, -1, 1) if round_ else np.ones_like(patch.u)
        shaded = self.hazed(np.asarray(colour, np.float32) * shade[..., None], patch.z)
        np.copyto(self.image_HW3[patch.rows, patch.columns], shaded, where=mask_hw[..., None])
        np.copyto(self.labels_HW[patch.rows, patch.columns], np.uint8(label), where=mask_hw)


def part(x: np.ndarray) -> np.ndarray:
    """The fractional part (much faster than `% 1`)."""
    return x - np.floor(x)
