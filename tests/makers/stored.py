"""Put images and label maps into a store, as preparing does, without a dataset."""

import hashlib
import io

import numpy as np
from PIL import Image

from pipeline.data import prepared
from pipeline.data.prepared import Pair, Prepared
from pipeline.ground import store
from pipeline.ground.files import write_bytes


def put(kind: str, array: np.ndarray) -> str:
    """Store an array as a PNG; returns its name."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    name = hashlib.sha256(buffer.getvalue()).hexdigest() + ".png"
    write_bytes(store.path(kind, name), buffer.getvalue())
    return name


def put_pair(name: str, image_HW3: np.ndarray, labels_HW: np.ndarray | None = None) -> Pair:
    """Store an image and its labels (by default all 0)."""
    labels_HW = np.zeros(image_HW3.shape[:2], np.uint8) if labels_HW is None else labels_HW
    return Pair(name, put("images", image_HW3), put("labels", labels_HW), *image_HW3.shape[:2])


def publish(train: list[Pair], val: list[Pair] | None = None) -> Prepared:
    """Write data/prepared.json for these pairs."""
    made = Prepared("scenes", ("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), {"train": tuple(train), "val": tuple(val or ())})
    prepared.write(made)
    return made


def textured(seed: int, height: int, width: int) -> np.ndarray:
    """A uint8 [H, W, 3] image with smooth regions, so that superpixels have something to follow."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
