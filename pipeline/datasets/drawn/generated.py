"""The files of generated scenes: each is drawn once into two PNG files, and again when one of them is lost or cut short."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.datasets import Source
from pipeline.datasets.drawn.picture import scene
from pipeline.ground import files
from pipeline.ground.workers import mapped

FIRST_OF_VAL = 1_000_000_000  # indices from here on are val's: no count of train images reaches them
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk: no bytes, its name, its checksum


@dataclass(frozen=True)
class Draw:
    """The work of one process: draw a scene of these settings, given its index, into its two files."""

    seed: int
    height: int
    width: int

    def __call__(self, job: tuple[int, Source]) -> None:
        """Write one scene's two files."""
        index, source = job
        image_HW3, labels_HW = scene(self.seed, index, self.height, self.width)
        for array, path in ((image_HW3, source.image), (labels_HW, source.label)):
            with files.replacing(path) as file:
                Image.fromarray(array).save(file, "PNG", compress_level=4)


def sources(folder: Path, face: Path, counts: Mapping[str, int], draw: Draw) -> Sequence[Source]:
    """Every pair of the dataset whose own file is `face`; scenes without whole files in `folder` are drawn first."""
    folder = folder / name_of(face, draw)
    sources, missing = [], []
    for split, first in (("train", 0), ("val", FIRST_OF_VAL)):
        for place in range(counts[split]):
            stem = folder / f"{split}-{place:06}"
            source = Source(split, stem.name, stem.with_suffix(".png"), stem.with_suffix(".label.png"))
            sources.append(source)
            if not (whole(source.image) and whole(source.label)):
                missing.append((first + place, source))
    for _ in mapped(draw, missing, f"drawing {draw.height} x {draw.width} scenes", done=len(sources) - len(missing)):
        pass
    return sources


def name_of(face: Path, draw: Draw) -> str:
    """A folder's name for all that the pictures depend on: settings, the dataset's own file and this folder's, and NumPy."""
    paths = (face, *sorted(Path(__file__).parent.rglob("*.py")))
    code = hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()
    return hashlib.sha256(json.dumps([vars(draw), code, np.__version__]).encode()).hexdigest()[:16]


def whole(path: Path) -> bool:
    """Whether a PNG file is there to its end."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:  # absent, or shorter than that
        return False
