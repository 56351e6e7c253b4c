"""The picture while it is painted, twice as large as it comes out: its pixels, and the camera that it is seen through."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pipeline.datasets.drawn.setting import Street

OVER = 2  # canvas pixels per pixel, each way
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, VEHICLE, PERSON, POLE, SIGN = range(9)  # the order of Scenes.classes


class Patch(NamedTuple):
    """The canvas pixels around an object at depth `z`: `u` metres to its right [1, w], `v` metres above the ground [h, 1]."""

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray
    z: float


class Canvas:
    """The picture, and the camera that it is seen through. Lengths are metres; rows and columns are canvas pixels."""

    def __init__(self, street: Street, height: int, width: int) -> None:
        self.street = street
        self.image_HW3 = np.zeros((height * OVER, width * OVER, 3), np.float32)
        self.labels_HW = np.full((height * OVER, width * OVER), SKY, np.uint8)
        self.focal, self.horizon = height * OVER * street.focal, height * OVER * street.horizon
        self.centre = width * OVER / 2 + height * OVER * street.centre

    def hazed(self, colour: np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """A colour as it looks from a distance; `z` broadcasts against the colour's channels."""
        share = np.exp(-np.asarray(z, np.float32) / np.float32(self.street.reach))
        return self.street.haze + share * (colour - self.street.haze)

    def patch(self, x: float, z: float, reach: float, top: float) -> Patch:
        """The pixels of an object on the ground, `x` right of the road's middle, `reach` to both sides and `top` high."""
        scale = self.focal / z
        middle, base = self.centre + scale * (x - self.street.lane), self.horizon + scale * self.street.eye
        rows = slice(*np.clip([int(base - scale * top), int(base) + 2], 0, len(self.labels_HW)))
        columns = slice(*np.clip([int(middle - scale * reach), int(middle + scale * reach) + 2], 0, self.labels_HW.shape[1]))
        u = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle) / scale
        v = (base - np.arange(rows.start, rows.stop, dtype=np.float32) - 0.5) / scale
        return Patch(rows, columns, u.astype(np.float32)[None], v.astype(np.float32)[:, None], z)

    def paint(self, patch: Patch, mask_hw: np.ndarray, colour: ArrayLike, label: int, round_: float = 0.0) -> None:
        """Colour where the mask holds, brighter towards the sun over a body `round_` metres wide to each side (0: flat)."""
        shade = 1 + np.float32(self.street.sun) * np.clip(patch.u / round_, -1, 1) if round_ else np.ones_like(patch.u)
        shaded = self.hazed(np.asarray(colour, np.float32) * shade[..., None], patch.z)
        np.copyto(self.image_HW3[patch.rows, patch.columns], shaded, where=mask_hw[..., None])
        np.copyto(self.labels_HW[patch.rows, patch.columns], np.uint8(label), where=mask_hw)


def part(x: np.ndarray) -> np.ndarray:
    """The fractional part (much faster than `% 1`)."""
    return x - np.floor(x)
