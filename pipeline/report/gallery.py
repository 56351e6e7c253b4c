"""The images that the page shows: which of them, and their photographs, labels, superpixel outlines and predictions.

Every image's numbers are on the page; pictures are bounded, for a page of 2,000 images would be no page.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import prepared
from pipeline.data.prepared import Pair
from pipeline.data.superpixel_maps import SuperpixelMaps, read_set
from pipeline.evaluation import pictures
from pipeline.evaluation.record import RESULTS, Record, reduced
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.report.embedding import packed, uri
from pipeline.report.entries import Entry

MOST = 48  # images with pictures
BUDGET = 12 * 2**20  # characters of all pictures together
SEEN = 0.005  # the share of an image that a class takes at least before the image counts as its worst or best
QUALITY = 82  # of JPEG
MULTI = 1  # the index of the protocol whose predictions are kept


@dataclass(frozen=True)
class Measured:
    """An evaluation with its record, or None, as beside results of an older version."""

    entry: Entry
    record: Record | None

    def prediction(self, pair: Pair) -> NDArray[np.uint8] | None:
        """The class ids (H, W) of a small prediction; None where there is none."""
        if self.record is not None and pair.name in self.record.names:
            found = self.record.prediction(self.record.names.index(pair.name))
            if found is not None:
                return found
        ids_HW = read_prediction(self.entry, pair)
        return None if ids_HW is None else pictures.nearest(ids_HW, reduced((pair.width, pair.height)))

    def image_iou(self) -> NDArray[np.float64]:
        """Every image's IoU of every class (N, K), of all seeds together, as the kept predictions were made; nan without union."""
        assert self.record is not None
        hits_NK, unions_NK = self.record.hits_SPNK[:, MULTI].sum(0), self.record.unions_SPNK[:, MULTI].sum(0)
        return np.divide(hits_NK, unions_NK, out=np.full(hits_NK.shape, np.nan), where=unions_NK > 0)


@dataclass
class Gallery:
    """The images of one split that the page speaks of, in the split's order, and the pictures of some."""

    split: str
    pairs: Sequence[Pair]
    shown: list[dict[str, Any]] = field(default_factory=list)  # `image`: the index of the pair, and the pictures' texts


def prediction_file(entry: Entry, pair: Pair) -> Any:
    """Where an evaluation keeps its large prediction of an image."""
    return RESULTS / entry.name / "pictures" / f"{pictures.safe_name(pair.name)}.prediction.png"


def read_prediction(entry: Entry, pair: Pair) -> NDArray[np.uint8] | None:
    """The class ids (H, W) of an indexed PNG; None where there is none."""
    path = prediction_file(entry, pair)
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} does not decode ({error}): run `uv run dvc repro --force --single-item evaluate@{entry.name}`") from None


def galleries(measured: Sequence[Measured], manifest: prepared.Prepared) -> list[Gallery]:
    """The gallery of every split that was evaluated; they share the budget."""
    made, sets = [], superpixel_sets(measured)
    splits = dict.fromkeys(entry.entry.evaluation.split for entry in measured)
    for split in splits:
        room, images = BUDGET // len(splits), max(1, MOST // len(splits))
        own = [entry for entry in measured if entry.entry.evaluation.split == split]
        known = {name for entry in own if entry.record for name in entry.record.names}
        every = manifest.splits.get(split, ())
        drawn = [pair for pair in every if any(prediction_file(entry.entry, pair).is_file() for entry in own)]
        pairs = [pair for pair in every if pair.name in known or pair in drawn]
        gallery = Gallery(split, pairs)
        for pair in chosen(own, pairs, drawn):
            if images == 0 or room <= 0:
                break
            gallery.shown.append({"image": pairs.index(pair)} | shown(pair, own, measured, sets))
            room -= sum(len(text) for text in (gallery.shown[-1]["photo"], gallery.shown[-1]["maps"]))
            images -= 1
        gallery.shown.sort(key=lambda entry: entry["image"])
        made.append(gallery)
    return made


def superpixel_sets(measured: Sequence[Measured]) -> dict[str, SuperpixelMaps]:
    """The sets that the methods read, as far as they are there."""
    names = {entry.entry.config.superpixels for entry in measured if entry.entry.config.superpixel_set is not None}
    return {name: read_set(name) for name in sorted(names) if store.manifest_of(name).is_file()}


def chosen(measured: Sequence[Measured], pairs: Sequence[Pair], drawn: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs by how much they deserve pictures: those with large pictures, each class's telling images, then all others."""
    place = {pair.name: pair for pair in pairs}
    names = [pair.name for pair in drawn] + [name for name in telling(measured) if name in place]
    for name in dict.fromkeys([*names, *place]):
        yield place[name]


def telling(measured: Sequence[Measured]) -> list[str]:
    """For each class in turn, weak ones first, the worst image, the best, and the one on which methods differ most."""
    records = [entry for entry in measured if entry.record is not None]
    if not records:
        return []
    first = records[0].record
    assert first is not None
    same = [entry for entry in records if entry.record is not None and entry.record.names == first.names]
    iou_MNK = np.stack([entry.image_iou() for entry in same])
    share_NK = first.labelled_NK / np.maximum(first.labelled_NK.sum(1, keepdims=True), 1)
    iou_MNK = np.where(share_NK >= SEEN, iou_MNK, np.nan)
    known_NK: NDArray[np.bool_] = np.logical_not(np.isnan(iou_MNK).any(0))
    filled_MNK = np.where(known_NK, iou_MNK, 0.0)
    mean_NK, range_NK = filled_MNK.mean(0), np.ptp(filled_MNK, 0)
    classes = [int(k) for k in np.flatnonzero(known_NK.any(0))]
    classes.sort(key=lambda k: (mean_NK[known_NK[:, k], k].mean(), k))
    found = []
    for worth_NK in (-mean_NK, mean_NK, range_NK):
        found += [first.names[int(np.where(known_NK[:, k], worth_NK[:, k], -np.inf).argmax())] for k in classes]
    return found


def shown(pair: Pair, own: Sequence[Measured], all_: Sequence[Measured], sets: Mapping[str, SuperpixelMaps]) -> dict[str, Any]:
    """An image's pictures: a JPEG, and its class maps and outlines as bytes one behind the other, packed.

    `parts` names what the bytes are: "labels", "set:<name>" (see `outline`) and the methods' indices.
    """
    size = reduced((pair.width, pair.height))
    photo = io.BytesIO()
    photograph(pair).save(photo, "JPEG", quality=QUALITY)
    parts: dict[str, bytes] = {"labels": small_labels(pair).tobytes()}
    for name, maps in sets.items():
        if (outlines := outline(maps, pair, size)) is not None:
            parts[f"set:{name}"] = outlines
    for entry in own:
        ids_HW = entry.prediction(pair)
        if ids_HW is not None and ids_HW.shape == size[::-1]:
            parts[str(all_.index(entry))] = ids_HW.tobytes()
    about = {"size": list(size), "full": [pair.width, pair.height], "parts": list(parts)}
    return about | {"photo": uri(photo.getvalue(), "image/jpeg"), "maps": packed(b"".join(parts.values()))}


def photograph(pair: Pair) -> Image.Image:
    """The image, small enough to be shown."""
    return prepared.open_image(pair).resize(reduced((pair.width, pair.height)), Image.Resampling.LANCZOS)


def small_labels(pair: Pair) -> NDArray[np.uint8]:
    """The labels at the size of `photograph`."""
    return pictures.nearest(prepared.open_label(pair), reduced((pair.width, pair.height)))


def outline(maps: SuperpixelMaps, pair: Pair, size: tuple[int, int]) -> bytes | None:
    """A bit for each pixel of the small picture whose left neighbour is in another superpixel, then the same for the upper one.

    None, with a warning, where the map is not there.
    """
    try:
        superpixels_HW = pictures.nearest(maps.open(pair), size)
    except UserError as error:
        warn(f"the page lacks superpixels of {pair.name}: {error}")
        return None
    left_HW, above_HW = np.zeros(superpixels_HW.shape, bool), np.zeros(superpixels_HW.shape, bool)
    left_HW[:, 1:] = superpixels_HW[:, 1:] != superpixels_HW[:, :-1]
    above_HW[1:] = superpixels_HW[1:] != superpixels_HW[:-1]
    return np.packbits(left_HW).tobytes() + np.packbits(above_HW).tobytes()
