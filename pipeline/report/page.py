"""report/index.html: the whole report as one page that asks for nothing, from tables, charts, pictures and their scripts."""

import functools
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import prepared
from pipeline.report import board, charts, runs
from pipeline.report.curves import Curve
from pipeline.report.embedding import data, element, packed, policy, script
from pipeline.report.gallery import MULTI, Gallery, Measured, galleries
from pipeline.report.sections import split_sizes

FILES = Path(__file__).parent / "browser"
SCRIPTS = ("common.js", "tables.js", "charts.js", "confusion.js", "images.js", "frame.js", "viewer.js")
NONE = 65535  # the 16-bit number of an IoU that is not there; the largest IoU is 65000
FULL = 65000


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def page(measured: Sequence[Measured], manifest: prepared.Prepared, curves: Mapping[str, Mapping[int, Curve]]) -> str:
    """The page. `curves` are the training curves by run and seed; equal inputs give equal text."""
    entries = [entry.entry for entry in measured]
    shown, blobs = galleries(measured, manifest), []
    content = {
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "palette": [list(colour) for colour in manifest.palette],
        "charts": charts.all_charts(entries, curves),
        "galleries": [gallery_data(gallery, measured, len(manifest.classes), blobs) for gallery in shown],
    }
    content["methods"] = [method_data(entry, shown, blobs) for entry in measured]
    values = {
        "title": html.escape(f"{manifest.dataset}: {len(entries)} method{'s' if len(entries) > 1 else ''}"),
        "lead": lead(measured, manifest),
        "baselines": "".join(element("option", html.escape(entry.name), value=index) for index, entry in enumerate(entries)),
        "board_controls": boundary_controls(measured),
        "board": board.leaderboard(entries),
        "heat": board.heat(entries, manifest.classes, manifest.palette, shares(measured)),
        "described": html.escape(charts.described(entries)),
        "facts": runs.facts(measured, manifest),
        "parts": runs.parts(entries),
        "details": runs.details(measured),
        "style": (FILES / "page.css").read_text(),
    }
    codes = [script(vega()), script("\n".join((FILES / name).read_text() for name in SCRIPTS))]
    values["policy"] = html.escape(policy([digest for _, digest in codes]))
    values["data"] = f'<script type="application/json" id="data">{data(content)}</script>' + "\n".join(
        f'<script type="text/plain" id="blob-{number}">{blob}</script>' for number, blob in enumerate(blobs)
    )
    values["scripts"] = "\n".join(element for element, _ in codes)
    text = (FILES / "page.html").read_text()
    first, *rest = text.split("{{")
    return first + "".join(values[part.split("}}", 1)[0]] + part.split("}}", 1)[1] for part in rest)


def lead(measured: Sequence[Measured], manifest: prepared.Prepared) -> str:
    """The sentence below the title."""
    splits = split_sizes([entry.entry for entry in measured])
    evaluated = " and ".join(f"{count:,} image{'' if count == 1 else 's'} of {html.escape(split)}" for split, count in splits.items())
    trained = len(manifest.splits.get("train", ()))
    images = f"{trained:,} training image{'' if trained == 1 else 's'}"
    seeds = max(len(entry.entry.results["seeds"]) for entry in measured)
    spread = ", ± the standard deviation over the seeds" if seeds > 1 else ""
    classes = f"{len(manifest.classes)} class{'' if len(manifest.classes) == 1 else 'es'}"
    several = len({entry.entry.images for entry in measured}) > 1
    apart = " Methods that were evaluated on different images are not compared." if several else ""
    return f"{classes}, {images}; scores on {evaluated}, in percent{spread}.{apart}"


def boundary_controls(measured: Sequence[Measured]) -> str:
    """The choice of a radius and a convention for the leaderboard's boundary score."""
    known = board.radii([entry.entry for entry in measured])
    if not known:
        return ""
    usual = board.main_radii([entry.entry for entry in measured])[-1]
    choices = "".join(element("option", f"{radius} px", value=radius, selected=radius == usual) for radius in known)
    ways = "".join(element("option", html.escape(words), value=key) for key, words in board.NAMES.items())
    return (
        f'<label>Boundary radius <select id="radius">{choices}</select></label>'
        f'<label>counted as <select id="convention">{ways}</select></label>'
    )


def shares(measured: Sequence[Measured]) -> list[float] | None:
    """The share of the labelled pixels that each class has, by the first record."""
    for entry in measured:
        if entry.record is not None:
            labelled_K = entry.record.labelled_NK.sum(0)
            return [float(share) for share in labelled_K / max(int(labelled_K.sum()), 1)]
    return None


def blob(blobs: list[str], content: bytes) -> int:
    """Put bytes on the page; returns their number there."""
    blobs.append(packed(content))
    return len(blobs) - 1


def sixteen(share_NK: np.ndarray) -> bytes:
    """Shares in [0, 1] as 16-bit numbers; nan is `NONE`, and what is not 0 stays above it."""
    whole_NK = np.where(share_NK > 0, np.maximum(np.nan_to_num(share_NK) * FULL + 0.5, 1), 0)
    return np.where(np.isnan(share_NK), NONE, whole_NK).astype("<u2").tobytes()


def gallery_data(gallery: Gallery, measured: Sequence[Measured], classes: int, blobs: list[str]) -> dict[str, Any]:
    """A split's images for the scripts: all names, how much of each is of which class, and the pictures of some."""
    share_NK = np.full((len(gallery.pairs), classes), np.nan)
    for entry in measured:
        if entry.record is not None and entry.entry.evaluation.split == gallery.split:
            labelled_NK = entry.record.labelled_NK
            own_NK = aligned(labelled_NK / np.maximum(labelled_NK.sum(1, keepdims=True), 1), entry, gallery)
            share_NK = np.where(np.isnan(share_NK), own_NK, share_NK)  # an evaluation may have a part of the images
    pictured = []
    for image in gallery.shown:
        blobs.append(image["maps"])
        pictured.append(image | {"maps": len(blobs) - 1})
    return {
        "split": gallery.split,
        "names": [pair.name for pair in gallery.pairs],
        "shares": blob(blobs, sixteen(share_NK)),
        "shown": pictured,
    }


def method_data(entry: Measured, shown: Sequence[Gallery], blobs: list[str]) -> dict[str, Any]:
    """A method for the scripts: its IoU in every image, and its confusion matrix (multi-scale, all seeds)."""
    gallery = next(index for index, gallery in enumerate(shown) if gallery.split == entry.entry.evaluation.split)
    made: dict[str, Any] = {"name": entry.entry.name, "of": entry.entry.evaluation.of, "gallery": gallery}
    made["images"] = " ".join(filter(None, entry.entry.images))  # methods on different ones are not compared
    made["miou"] = entry.entry.value("multi_scale_flip", "miou")
    if entry.record is not None:
        made["iou"] = blob(blobs, sixteen(aligned(entry.image_iou(), entry, shown[gallery])))
        made["confusion"] = blob(blobs, entry.record.confusion_SPKK[:, MULTI].sum(0).astype("<f8").tobytes())
    return made


def aligned(values_NK: np.ndarray, entry: Measured, gallery: Gallery) -> np.ndarray:
    """An evaluation's rows in the order of the gallery's images; nan for images that it did not have."""
    assert entry.record is not None
    place = {name: index for index, name in enumerate(entry.record.names)}
    found = np.full((len(gallery.pairs), values_NK.shape[1]), np.nan)
    for index, pair in enumerate(gallery.pairs):
        if pair.name in place:
            found[index] = values_NK[place[pair.name]]
    return found
