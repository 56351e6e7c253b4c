"""Images to predict, and label maps that are read back."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import prepared
from pipeline.ground import store

CLASSES = 9


def images() -> dict[str, Path]:
    """The files of the split val in the store, by their names."""
    return {pair.name: store.path("images", pair.image) for pair in prepared.pairs(prepared.read(), "val")}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)
