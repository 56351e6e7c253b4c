"""Procedurally generated street scenes: real files without a download, as many and as large as one asks for.

A scene is painted far to near through a pinhole camera over flat ground, at twice the size: colours are averaged, so that
they mix across boundaries, and a pixel's label is its majority's. Colours are shared on purpose (cars and clothes take
walls' colours, walls and clouds the road's greys), so that a pixel's surroundings tell its class. Bins, cones and the
camera car's bonnet have no class.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.prepared import upright
from pipeline.datasets import Source
from pipeline.datasets.drawn.picture import scene
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.workers import mapped

FIRST_OF_VAL = 1_000_000_000  # indices from here on are val's: no count of train images reaches them
SMALLEST, LARGEST = 32, 4096  # pixels of a side
DRAWN = Path(__file__).with_name("drawn")
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk: no bytes, its name, its checksum


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
            if not least <= value < FIRST_OF_VAL:
                raise UserError(f"data.{key} must be {least} or more, not {value}")
        self.root, self.height, self.width, self.seed = root, height, width, seed
        self.counts = {"train": train_images, "val": val_images}

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every pair; scenes without whole files in `folder` are drawn first, so a killed run goes on where it was."""
        # The folder's name stands for all that the pictures depend on, the code included.
        code = hashlib.sha256(b"\0".join(path.read_bytes() for path in (Path(__file__), *sorted(DRAWN.rglob("*.py"))))).hexdigest()
        settings = json.dumps([self.seed, self.height, self.width, code, np.__version__])
        folder = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
        sources, missing = [], []
        for split, first in (("train", 0), ("val", FIRST_OF_VAL)):
            for place in range(self.counts[split]):
                stem = folder / f"{split}-{place:06}"
                source = Source(split, stem.name, stem.with_suffix(".png"), stem.with_suffix(".label.png"))
                sources.append(source)
                if not (whole(source.image) and whole(source.label)):
                    missing.append((first + place, source))
        for _ in mapped(self.draw, missing, f"drawing {self.height} x {self.width} scenes", done=len(sources) - len(missing)):
            pass
        return sources

    def draw(self, job: tuple[int, Source]) -> None:
        """Write one scene's two files."""
        index, source = job
        image_HW3, labels_HW = scene(self.seed, index, self.height, self.width)
        for array, path in ((image_HW3, source.image), (labels_HW, source.label)):
            with files.replacing(path) as file:
                Image.fromarray(array).save(file, "PNG", compress_level=4)

    def label(self, path: Path) -> np.ndarray:
        """The class ids [height, width] of a label file."""
        return np.array(upright(path))


def whole(path: Path) -> bool:
    """Whether a PNG file is there to its end."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:  # absent, or shorter than that
        return False
