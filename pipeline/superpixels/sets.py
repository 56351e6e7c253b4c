"""Superpixels of a dataset's images, computed offline, once, and found again by content.

A map is a 16-bit PNG in the store, named by `key`: a hash of VERSION, the image file's hash and the four settings. So another
count computes only that count, a killed run goes on where it was, and runs at the same time share the work. The stage publishes
`data/superpixels/<set>.json`, which names and hashes the maps.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.prepared import Pair, open_image
from pipeline.data.superpixel_maps import KIND, MapFile, SuperpixelMaps, open_map
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.ground.workers import mapped
from pipeline.settings.schema import SuperpixelSet
from pipeline.superpixels.slic import VERSION, label_map


def key(image_sha256: str, settings: SuperpixelSet) -> str:
    """The name of a map: a SHA-256 over VERSION, which names the algorithm, the hash of the image file's bytes and the settings."""
    numbers = [settings.segments, float(settings.compactness), float(settings.sigma)]
    return hashlib.sha256(json.dumps([VERSION, image_sha256, settings.algorithm, *numbers]).encode()).hexdigest()


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
