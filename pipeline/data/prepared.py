"""data/prepared.json: what the stage prepare publishes, and the images and label maps in the store that it names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import rgb
from pipeline.ground import files, store
from pipeline.ground.errors import UserError

REMEDY = "uv run dvc repro prepare"
FORCE = "uv run python -m stages.prepare"  # DVC does not see what is missing from the store


@dataclass(frozen=True)
class Pair:
    """An image and its label map in the store. `image` and `label` are file names there; sizes are pixels, upright."""

    name: str
    image: str
    label: str
    height: int
    width: int


@dataclass(frozen=True)
class Prepared:
    """The checked dataset: its classes, their colours, and the pairs of every split."""

    dataset: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, tuple[Pair, ...]]


def read(path: Path = store.PREPARED) -> Prepared:
    """The published manifest; a UserError says how to make a missing or damaged one."""
    remedy = f"run `{REMEDY}` (or `{FORCE}`)"
    raw = files.read_json(path, remedy)
    try:
        splits = {split: tuple(Pair(**pair) for pair in pairs) for split, pairs in raw["splits"].items()}
        return Prepared(raw["dataset"], tuple(raw["classes"]), tuple(tuple(colour) for colour in raw["palette"]), splits)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: {remedy}") from None


def write(prepared: Prepared, path: Path = store.PREPARED) -> None:
    """Publish the manifest: equal content, equal bytes."""
    files.write_json(path, asdict(prepared))


def pairs(prepared: Prepared, split: str) -> tuple[Pair, ...]:
    """The pairs of a split."""
    if split not in prepared.splits:
        raise UserError(f"dataset {prepared.dataset} has no split {split!r}; known: {', '.join(prepared.splits)}")
    return prepared.splits[split]


def open_image(pair: Pair) -> Image.Image:
    """The RGB image, upright, fully decoded; a UserError says what to do about a missing or damaged file."""
    path = store.existing("images", pair.image, FORCE)
    image = decode(path, pair.name)
    if image.size != (pair.width, pair.height):
        raise UserError(f"{path} ({pair.name}) is {image.width} x {image.height}, not {pair.width} x {pair.height}: {restore(path)}")
    return image


def open_label(pair: Pair) -> np.ndarray:
    """The uint8 [height, width] map of class ids, 255 ignored."""
    path = store.existing("labels", pair.label, FORCE)
    try:
        with Image.open(path) as image:
            label_HW = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} ({pair.name}) does not decode ({error}): {restore(path)}") from None
    if label_HW.shape != (pair.height, pair.width) or label_HW.dtype != np.uint8:
        raise UserError(f"{path} ({pair.name}) is no label map of {pair.width} x {pair.height}: {restore(path)}")
    return label_HW


def restore(path: Path) -> str:
    """What to do about a damaged file of the store."""
    return f"delete it and run `{FORCE}`"


def decode(path: Path, name: str) -> Image.Image:
    """An RGB image of the store; damage is a UserError that says how to mend it."""
    try:
        return rgb(path)
    except UserError as error:
        raise UserError(f"{path} ({name}): {error}: {restore(path)}") from None
