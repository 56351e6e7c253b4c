"""Superpixel maps as their stage published them: data/superpixels/<set>.json, and the 16-bit PNGs in the store that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.data.prepared import Pair
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.settings.schema import SuperpixelSet

KIND = "superpixels"


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
