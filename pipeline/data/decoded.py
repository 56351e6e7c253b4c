"""Images, label maps and superpixel maps of the training split as raw arrays in the store: a crop is read, not decoded.

Decoding a PNG of 2048 x 1024 pixels takes longer than all the rest of a sample. A launch profile with `decoded: true` keeps each
array once, named by the hash of the file that it comes from, and maps it into memory. Whoever first needs an array writes it, so
that processes and runs share the work. The folder takes 4 bytes for each pixel of an image with its labels, 6 with its
superpixels, and may be deleted at any time:

    <store>/decoded/<what decodes>/<kind>/<first two digits>/<hash>

The batches are those of the files themselves, bit for bit.
"""

import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from pipeline.data import prepared
from pipeline.data.prepared import Pair
from pipeline.data.superpixel_maps import SuperpixelMaps
from pipeline.ground import store
from pipeline.ground.errors import UserError, explained
from pipeline.ground.files import replacing

VERSION = 1  # of the arrays: to be raised with every change of images.py that changes what an image's pixels are
WAY_OUT = "make room, or set `decoded: false` in the launch profile"


@dataclass(frozen=True)
class Raw:
    """An array's file: where it is, and what it holds. A file of another size is no such array."""

    path: Path
    shape: tuple[int, ...]
    dtype: type[np.uint8 | np.uint16]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def is_there(self) -> bool:
        """Whether the file is whole."""
        try:
            return self.path.stat().st_size == self.size
        except FileNotFoundError:
            return False

    def mapped(self) -> np.ndarray | None:
        """The array, read-only, of which only what is looked at is read; None where there is no whole file."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    return None
                pages = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        return np.frombuffer(pages, self.dtype).reshape(self.shape)

    def kept(self, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The array, decoded and written if it is not there; a UserError where it cannot be written."""
        found = self.mapped()
        if found is not None:
            return found
        array = np.ascontiguousarray(decode())
        assert (array.shape, array.dtype) == (self.shape, self.dtype), f"{self.path} is {array.dtype} {array.shape}"
        try:
            with replacing(self.path) as file:
                file.write(array.data)
        except UserError as error:
            raise UserError(f"{error}: {WAY_OUT}") from None
        return array


def folder() -> Path:
    """Where the arrays are. What decodes is part of it: another libjpeg gives a JPEG other pixels."""
    return store.root() / "decoded" / f"{VERSION}-pillow-{PIL.__version__}-jpeg-{features.version('jpg')}"


def raw(kind: str, digest: str, shape: tuple[int, ...], dtype: type[np.uint8 | np.uint16] = np.uint8) -> Raw:
    """The raw array of the store's file with the hash `digest`."""
    return Raw(folder() / kind / digest[:2] / digest, shape, dtype)


def raw_image(pair: Pair) -> Raw:
    """A pair's image: [3, height, width], since Pillow reads single bands from memory without a copy, but not RGB."""
    return raw("images", Path(pair.image).stem, (3, pair.height, pair.width))


def raw_label(pair: Pair) -> Raw:
    """A pair's label map."""
    return raw("labels", Path(pair.label).stem, (pair.height, pair.width))


def raw_superpixels(maps: SuperpixelMaps, pair: Pair) -> Raw:
    """A pair's superpixel map; named by the hash of its file, which another version of scikit-image can change."""
    maps.file(pair)  # or a UserError
    return raw("superpixels", maps.maps[pair.image].sha256, (pair.height, pair.width), np.uint16)


def image(pair: Pair) -> np.ndarray:
    """The uint8 [3, height, width] pixels of an image, upright; read-only."""
    return raw_image(pair).kept(lambda: np.asarray(prepared.open_image(pair)).transpose(2, 0, 1))


def label(pair: Pair) -> np.ndarray:
    """The uint8 [height, width] map of class ids, 255 ignored; read-only."""
    return raw_label(pair).kept(lambda: prepared.open_label(pair))


def superpixels(maps: SuperpixelMaps, pair: Pair) -> np.ndarray:
    """The uint16 [height, width] superpixel map; read-only."""
    return raw_superpixels(maps, pair).kept(lambda: maps.open(pair).astype(np.uint16))


def refuse_small_disk(images: Iterable[Pair], maps: SuperpixelMaps | None) -> None:
    """Refuse, before the first step, to begin with arrays for which the disk has no room."""
    arrays = {array.path: array for pair in images for array in arrays_of(pair, maps)}
    missing = sum(array.size for array in arrays.values() if not array.is_there())
    if not missing:
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder()).free
    except OSError as error:
        raise UserError(f"{explained(error, f'cannot write {folder()}')}: {WAY_OUT}") from None
    if missing > free:
        raise UserError(f"{folder()} needs {missing / 1e9:.1f} GB more, but its disk has {free / 1e9:.1f} GB free: {WAY_OUT}")


def arrays_of(pair: Pair, maps: SuperpixelMaps | None) -> Iterator[Raw]:
    """The arrays that a sample of a pair reads."""
    yield raw_image(pair)
    yield raw_label(pair)
    if maps is not None:
        yield raw_superpixels(maps, pair)
