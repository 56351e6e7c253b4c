"""Procedurally generated street scenes: real files without a download, as many and as large as one asks for.

A scene is painted far to near through a pinhole camera over flat ground, at twice the size: colours are averaged, so that
they mix across boundaries, and a pixel's label is its majority's. Colours are shared on purpose (cars and clothes take
walls' colours, walls and clouds the road's greys), so that a pixel's surroundings tell its class. Bins, cones and the
camera car's bonnet have no class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import Source
from pipeline.datasets.drawn import generated
from pipeline.ground.errors import UserError

SMALLEST, LARGEST = 32, 4096  # pixels of a side


class Scenes:
    """`train_images` and `val_images` scenes of `height` x `width` pixels; each depends on its index, `seed` and size alone."""

    classes = ("sky", "building", "road", "pavement", "vegetation", "vehicle", "person", "pole", "sign")
    palette = (
        (86, 180, 233),
        (130, 90, 70),
        (90, 90, 100),
        (204, 121, 167),
        (0, 140, 90),
        (0, 90, 200),
        (220, 50, 32),
        (240, 228, 66),
        (255, 150, 0),
    )
    archives = ()
    splits = ("train", "val")

    def __init__(self, root: Path, *, train_images: int, val_images: int, height: int, width: int, seed: int) -> None:
        for key, value in {"height": height, "width": width}.items():
            if not SMALLEST <= value <= LARGEST:
                raise UserError(f"data.{key} must be from {SMALLEST} to {LARGEST} pixels, not {value}")
        for key, value, least in (("train_images", train_images, 1), ("val_images", val_images, 1), ("seed", seed, 0)):
            if not least <= value < generated.FIRST_OF_VAL:
                raise UserError(f"data.{key} must be {least} or more, not {value}")
        self.root, self.height, self.width, self.seed = root, height, width, seed
        self.counts = {"train": train_images, "val": val_images}

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every pair; scenes without whole files in `folder` are drawn first, so a killed run goes on where it was."""
        return generated.sources(folder, Path(__file__), self.counts, generated.Draw(self.seed, self.height, self.width))

    def label(self, path: Path) -> np.ndarray:
        """The class ids [height, width] of a label file."""
        return np.array(upright(path))
