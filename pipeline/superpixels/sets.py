"""Superpixels of images, computed offline, once, and found again by content.

SLIC: Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods", PAMI 2012. k-means over (Lab
colour, position) where `compactness` weighs position; SLICO adapts that weight to each superpixel. scikit-image computes
both. Every superpixel is connected, and labels count from 0.

A map is a 16-bit PNG in the store, named by `key`: a hash of VERSION, the image file's hash and the four settings. So another
count computes only that count, a killed run goes on where it was, and runs at the same time share the work. The stage publishes
`data/superpixels/<set>.json`, which names and hashes the maps.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.data.prepared import Pair, open_image
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.ground.workers import mapped
from pipeline.settings.schema import SuperpixelSet

KIND = "superpixels"
VERSION = 1  # of the maps: to be raised with every change of this file that changes them
MOST = 65535  # labels that 16 bits hold


@dataclass(frozen=True)
class MapFile:
    """One image's map: its file's name in the store, the hash of that file, and the number of superpixels."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    file: str
    sha256: str
    segments: int


@dataclass(frozen=True)
class SuperpixelMaps:
    """A named set as its stage published it. `settings` is None, and `maps` empty, for the set without superpixels."""

    name: str
    settings: SuperpixelSet | None
    maps: Mapping[str, MapFile]  # by the image's name in the store

    def file(self, pair: Pair) -> str:
        """The name of a pair's map in the store."""
        if pair.image not in self.maps:
            raise UserError(f"{store.manifest_of(self.name)} has no map of {pair.name}: {remedy(self.name)}")
        return self.maps[pair.image].file

    def open(self, pair: Pair) -> np.ndarray:
        """A pair's int32 [height, width] map."""
        return open_map(self.file(pair), pair, self.name)


def key(image_sha256: str, settings: SuperpixelSet) -> str:
    """The name of a map: a SHA-256 over VERSION, which names the algorithm, the hash of the image file's bytes and the settings."""
    numbers = [settings.segments, float(settings.compactness), float(settings.sigma)]
    return hashlib.sha256(json.dumps([VERSION, image_sha256, settings.algorithm, *numbers]).encode()).hexdigest()


def label_map(image_HW3: np.ndarray, settings: SuperpixelSet) -> np.ndarray:
    """The int32 [H, W] superpixel labels 0..n-1 of a uint8 RGB image.

    Raises UserError for more superpixels than 16 bits hold.
    """
    from skimage.segmentation import slic  # 1.4 s, and only this function needs it

    labels_HW = slic(
        image_HW3,
        n_segments=settings.segments,
        compactness=settings.compactness,
        sigma=settings.sigma,
        slic_zero=settings.algorithm == "slico",
        start_label=0,
        enforce_connectivity=True,
        channel_axis=-1,
    ).astype(np.int32)
    if labels_HW.max() >= MOST:
        raise UserError(f"{labels_HW.max() + 1} superpixels are more than the {MOST} that a map can hold: ask for fewer segments")
    return labels_HW


def command(name: str) -> str:
    """What makes a set, or what is missing of it: DVC does not see what is missing from the store."""
    return f"uv run python -m stages.superpixels {name}"


def remedy(name: str) -> str:
    """The end of a message about a missing or damaged map or manifest."""
    return f"run `{command(name)}`"


def open_map(file: str, pair: Pair, name: str = "SET") -> np.ndarray:
    """The int32 [height, width] map `file` of the store; `name` is the set's, for the UserError on a missing or damaged one."""
    path = store.existing(KIND, file, command(name))
    try:
        with Image.open(path) as image:
            labels_HW = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} (superpixels of {pair.name}) does not decode ({error}): {remedy(name)}") from None
    if labels_HW.shape != (pair.height, pair.width) or labels_HW.dtype != np.uint16:
        raise UserError(f"{path} is no superpixel map of {pair.name} ({pair.width} x {pair.height}): {remedy(name)}")
    return labels_HW.astype(np.int32)


def read_set(name: str) -> SuperpixelMaps:
    """The published set; a UserError says how to make a missing or damaged one."""
    path = store.manifest_of(name)
    raw = files.read_json(path, remedy(name))
    try:
        return TypeAdapter(SuperpixelMaps).validate_python({"name": name, **raw})
    except (ValidationError, TypeError):
        raise UserError(f"{path} is damaged: {remedy(name)}") from None


def read_complete(name: str, settings: SuperpixelSet, pairs: Sequence[Pair]) -> SuperpixelMaps:
    """The published set, after checking that it was made with these settings and has a map of every pair."""
    maps = read_set(name)
    if maps.settings != settings:
        raise UserError(f"{store.manifest_of(name)} was made with other settings than superpixels.{name}: {remedy(name)}")
    for pair in pairs:
        maps.file(pair)
    return maps


def ensure(pair: Pair, settings: SuperpixelSet) -> tuple[MapFile, bool]:
    """A pair's map in the store, computed unless an intact one is there, and whether it was computed."""
    file = key(Path(pair.image).stem, settings) + ".png"
    path = store.path(KIND, file)
    segments, computed = intact(file, pair) if path.is_file() else None, False
    if segments is None:
        with files.locked(path.parent / ".lock", str(path), wait=True):  # another run may be at this map
            if path.is_file():
                segments = intact(file, pair)
            if segments is None:
                segments, computed = compute(pair, settings, path), True
    return MapFile(file, files.sha256(path), segments), computed


def compute(pair: Pair, settings: SuperpixelSet, path: Path) -> int:
    """Write a pair's map to `path`; returns its number of superpixels."""
    try:
        labels_HW = label_map(np.asarray(open_image(pair)), settings)
    except UserError as error:
        raise UserError(f"superpixels of {pair.name}: {error}") from None
    with files.replacing(path) as output:
        Image.fromarray(labels_HW.astype(np.uint16)).save(output, format="PNG")
    return int(labels_HW.max()) + 1


def intact(file: str, pair: Pair) -> int | None:
    """The number of superpixels in a map that is there; None where it is damaged."""
    try:
        counts = np.bincount(open_map(file, pair).ravel())
    except UserError:
        return None
    return len(counts) if counts.all() else None


def publish(name: str, settings: SuperpixelSet | None, pairs: Sequence[Pair]) -> tuple[SuperpixelMaps, int]:
    """Make a set over the pairs' images and write its manifest; returns it and how many maps had to be computed."""
    maps, computed = {}, 0
    if settings is not None:
        images = list({pair.image: pair for pair in pairs}.values())
        random.shuffle(images)  # runs at the same time meet them in different orders, so that each finds what the other made
        for pair, (entry, new) in mapped(partial(ensure, settings=settings), images, f"superpixels {name}"):
            maps[pair.image] = entry
            computed += new
    made = SuperpixelMaps(name, settings, maps)
    content = {key: value for key, value in asdict(made).items() if key != "name"}  # equal sets have equal manifests
    files.write_json(store.manifest_of(name), content)
    return made, computed
