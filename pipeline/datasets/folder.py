"""The user's own images and masks, from a folder or a CSV file. `docs/own-images.md` shows how to arrange them.

A folder holds `images` and `masks`, matched by file name, with or without the splits train, val and test as folders
above or below them; a CSV file has the columns image, mask and, if wanted, split. Without a val split, `val_share` of the
train images become one. Masks carry ids (grey or indexed) or colours, as `classes` says.
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Colour, Source, refuse
from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.labels.masks import code, codes, colours_of, ids_of, packed, replaced, shown, unnamed
from pipeline.labels.palette import distinct

IMAGES = ("images", "image", "imgs")
MASKS = ("masks", "mask", "labels", "label", "annotations")
ENDINGS = ("_mask", "_label", "-mask", "-label")  # what a mask's name may have behind its image's
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".jp2"))
LAYOUT = "it must hold the folders images and masks (or train and val with these two in each), or be a CSV file"
PAGE = "see docs/own-images.md"


class Files(NamedTuple):
    """One place where images and their masks lie."""

    split: str
    images: Path
    masks: Path


class Folder:
    """`classes`: names in the order of their ids, or each name with its id or its colour ([r, g, b] or "#rrggbb") in the masks.

    `ignore` is the id or colour of pixels without a class. `val_share` of the train images become val where there is no val.
    """

    archives = ()

    def __init__(self, root: Path, *, classes: list | dict, ignore: int | str | list | None = None, val_share: float = 0.2) -> None:
        self.root, self.val_share = root, val_share
        if not 0 < val_share < 1:
            raise UserError(f"data.val_share must lie between 0 and 1, not {val_share}")
        if wrong := [name for name in classes if not isinstance(name, str) or not name]:
            raise UserError(f"data.classes: {unnamed(wrong[0])}")
        named = dict(zip(classes, range(len(classes)), strict=True)) if isinstance(classes, list) else classes
        if len(named) != len(classes):
            raise UserError(f"data.classes has a name twice: {max(classes, key=list(classes).count)}")
        if not 1 <= len(named) <= IGNORED:
            raise UserError(f"data.classes must name 1 to {IGNORED} classes, not {len(named)}")
        self.coded = codes(named)
        self.coloured = not isinstance(next(iter(self.coded.values())), int)
        self.ignore = None if ignore is None else code("ignore", ignore)
        if self.ignore is not None and isinstance(self.ignore, int) == self.coloured:
            raise UserError(f"data.ignore must be {'a colour' if self.coloured else 'an id'}, as the classes have, not {ignore!r}")
        for name, value in self.coded.items():
            if value == self.ignore:
                way_out = f"; to leave an id out, give every class its id, as in classes: {{{name}: 1}}"
                raise UserError(f"data.ignore: {shown(value)} is the class {name}{way_out}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their ids."""
        return tuple(self.coded)

    @property
    def palette(self) -> tuple[Colour, ...]:
        """The masks' own colours, or well-distinguishable ones."""
        return tuple(value for value in self.coded.values() if not isinstance(value, int)) or distinct(len(self.coded))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits train and val, and test where there is one (or where nothing is there to look at)."""
        try:
            found = {row.split for row in (read_csv(self.root) if self.root.is_file() else places(self.root)[0])}
        except UserError:
            found = {"test"}
        return ("train", "val", "test") if "test" in found else ("train", "val")

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every pair; what has no partner is listed by name."""
        if not self.root.exists():
            raise UserError(f"data.root: {self.root} does not exist: {LAYOUT}; {PAGE}")
        faults: list[str] = []
        if self.root.is_file():
            found = read_csv(self.root)
        else:
            complete, unmasked = places(self.root)
            for images in unmasked:
                warn(f"{images} has no masks: its images are left out")
            found = [source for place in complete for source in matched(place, faults)]
        if faults:
            refuse(faults, f"{self.root}: {len(faults)} files (named above) form no pairs: every image needs a mask of its name; {PAGE}")
        if not found:
            raise UserError(f"{self.root} holds no images ({', '.join(sorted(SUFFIXES))}); {PAGE}")
        return with_val(found, self.val_share)

    def label(self, path: Path) -> np.ndarray:
        """The class ids [height, width] of a mask (255: ignored)."""
        mask = upright(path)
        codes_HW = colours_of(mask) if self.coloured else ids_of(mask)
        known = {packed(value): place for place, value in enumerate(self.coded.values())}
        if self.ignore is not None:
            known[packed(self.ignore)] = IGNORED
        label_HW, strange_HW = replaced(codes_HW, known)
        if strange_HW.any():
            raise UserError(self.complaint(codes_HW[strange_HW], mask, path))
        return label_HW

    def complaint(self, strange: np.ndarray, mask: Image.Image, path: Path) -> str:
        """Which ids or colours of a mask are no class's, on how many pixels, and what to do."""
        values, counts = np.unique(strange, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:4]
        named = ", ".join(f"{f'#{values[i]:06x}' if self.coloured else values[i]} ({counts[i]} pixels)" for i in order)
        more = f" and {len(values) - len(order)} more" if len(values) > len(order) else ""
        what = f"{'colours' if self.coloured else 'ids'} that are no class's: {named}{more}"
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            return f"{what}: {path.suffix} blurs masks, save them as PNG"
        if self.coloured and mask.mode in ("L", "1"):
            return f"{what}: the mask is grey, so data.classes should list names or give each its id"
        if self.coloured:
            return f"{what}: add them to data.classes, or as data.ignore (many more: was the mask resized with smoothing?)"
        if values.tolist() == [255] and len(self.coded) == 2 and self.ignore is None:
            first, second = self.coded
            return f"{what}: if white is {second}, write classes: {{{first}: 0, {second}: 255}}, if it is unlabelled, ignore: 255"
        listed_ids = ", ".join(map(str, list(self.coded.values())[:12]))
        return f"{what}: the classes have {listed_ids}; add names to data.classes, or set data.ignore"


def places(root: Path) -> tuple[list[Files], list[Path]]:
    """Where images and masks lie: `images` and `masks`, each with or without splits, or splits with these two in each.

    Returns these places, and the folders of test images without masks.
    """
    images, masks = child(root, IMAGES), child(root, MASKS)
    if images is None and masks is None:
        found = [(split, folder, child(folder, IMAGES), child(folder, MASKS)) for split, folder in split_folders(root)]
    elif images is not None and masks is not None and (splits := split_folders(images)):
        below = dict(split_folders(masks))
        found = [(split, folder, folder, below.get(split)) for split, folder in splits]
    else:
        found = [("train", root, images, masks)]
    complete, unmasked = [], []
    for split, folder, images, masks in found:
        if images is not None and masks is not None:
            complete.append(Files(split, images, masks))
        elif split == "test" and images is not None:
            unmasked.append(folder)
        else:
            raise UserError(f"{folder} has no folder of {'images' if images is None else 'masks'}; {PAGE}")
    if not complete:
        raise UserError(f"data.root: {root} cannot be read as a dataset: {LAYOUT}; {PAGE}")
    return complete, unmasked


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, in the order of their names."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"data.root: {folder} cannot be read ({error.strerror}): {LAYOUT}; {PAGE}") from None


def child(folder: Path, names: Sequence[str]) -> Path | None:
    """The one folder in `folder` that has one of these names, in any case."""
    found = [path for path in subfolders(folder) if path.name.lower() in names]
    if len(found) > 1:
        raise UserError(f"{folder} has {found[0].name} and {found[1].name}: which of them? Rename or move the other one")
    return found[0] if found else None


def split_folders(folder: Path) -> list[tuple[str, Path]]:
    """The folders in `folder` that are named as splits."""
    found = [path for path in subfolders(folder) if path.name.lower() in SPLITS]
    named = [(SPLITS[path.name.lower()], path) for path in found]
    if len(dict(named)) < len(named):
        raise UserError(f"{folder} has two folders for one split: {', '.join(path.name for path in found)}")
    return named


def listed(folder: Path) -> list[tuple[str, Path]]:
    """Every image file below `folder` with its path in it, suffix left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in files if not path.name.startswith(".")]


def matched(place: Files, faults: list[str]) -> Iterable[Source]:
    """The pairs of one place; what has no partner, or two, is added to `faults`."""
    images: dict[str, Path] = {}
    for key, path in listed(place.images):
        if key in images:
            faults.append(f"{path}: has the name of {images[key].name}")
        images[key] = path
    masks: dict[str, Path] = {}
    for key, path in listed(place.masks):
        bare = next((key.removesuffix(ending) for ending in ENDINGS if key.endswith(ending)), key)
        owner = key if key in images or bare not in images else bare
        if owner in masks:
            faults.append(f"{path}: is a second mask for {owner}, beside {masks[owner].name}")
        elif owner not in images:
            faults.append(f"{path}: has no image {place.images / owner}.*")
        masks[owner] = path
    faults.extend(f"{path}: has no mask {place.masks / key}.*" for key, path in images.items() if key not in masks)
    return [Source(place.split, key.replace("/", "_"), path, masks[key]) for key, path in images.items() if key in masks]


def read_csv(file: Path) -> list[Source]:
    """The pairs that a CSV file lists; paths are relative to it. The column split may be absent."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.root: {file} cannot be read as a CSV file in UTF-8 ({error}): {LAYOUT}; {PAGE}") from None
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = csv.DictReader(lines, delimiter=separator, skipinitialspace=True)
    columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    mask = columns.get("mask", columns.get("label"))
    if "image" not in columns or mask is None:
        raise UserError(f"data.root: {file} must begin with a line of column names, image,mask or image,mask,split; {PAGE}")
    found, faults = [], []
    for row in rows:
        image, label = ((row[column] or "").strip() for column in (columns["image"], mask))
        split = SPLITS.get((row[columns["split"]] or "").strip().lower()) if "split" in columns else "train"
        if image and label and split:
            name = Path(image).with_suffix("").as_posix().strip("./").replace("/", "_")
            found.append(Source(split, name, file.parent / image, file.parent / label))
        else:
            faults.append(f"{file}: line {rows.line_num}: needs an image, a mask and, where there is a column split, train, val or test")
    if faults:
        refuse(faults, f"{file}: {len(faults)} lines (named above) cannot be used")
    return found


def with_val(sources: Sequence[Source], share: float) -> Sequence[Source]:
    """The same pairs; where none is val, `share` of train becomes val: those whose names' hashes come first."""
    train = [source for source in sources if source.split == "train"]
    if len(train) < 2 or any(source.split == "val" for source in sources):
        return sources
    train.sort(key=lambda source: hashlib.sha256(source.name.encode()).hexdigest())
    chosen = {source.name for source in train[: min(max(1, round(share * len(train))), len(train) - 1)]}
    return [replace(source, split="val") if source.split == "train" and source.name in chosen else source for source in sources]
