"""The report: report/index.md with the table of methods, its pictures, and report/curves.csv for `dvc plots`.

It reads the evaluations that params.yaml names, for its dataset, and no other files; equal inputs give equal bytes.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import files, pictures, prepared
from pipeline.errors import UserError
from pipeline.report import curves, grids
from pipeline.report.entries import RESULTS, Entry, read, warn_of_unused
from pipeline.report.sections import chapters
from pipeline.schema import Params

FOLDER = Path("report")


def write(params: Params) -> list[Entry]:
    """Write the report and return what it shows, in params.yaml's order.

    Raises UserError for results that are missing, damaged or of something else, with the command that makes them.
    """
    warn_of_unused(params)
    entries = read(params)
    manifest = prepared.read()
    drawn = {"pictures/curves.png": draw_curves(entries)} | draw_grids(entries, manifest)
    for name, image in drawn.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.write_bytes(FOLDER / name, buffer.getvalue())
    for stale in (FOLDER / "pictures").glob("*.png"):
        if f"pictures/{stale.name}" not in drawn:
            stale.unlink()
    text = chapters(entries, manifest.classes, len(manifest.splits.get("train", ())), [name for name in drawn if "curves" not in name])
    files.write_bytes(FOLDER / "index.md", text.encode())
    return entries


def draw_curves(entries: Sequence[Entry]) -> Image.Image:
    """Write curves.csv with the records of all runs that were evaluated, and draw them."""
    named, found = {}, {}
    for run in dict.fromkeys(entry.evaluation.of for entry in entries):
        seeds = sorted((Path("runs") / run / "weights").glob("seed-*.csv"), key=lambda path: int(path.stem.removeprefix("seed-")))
        found[run] = [curves.read(path) for path in seeds]
        for path, curve in zip(seeds, found[run], strict=True):
            named[run if len(seeds) == 1 else f"{run} {path.stem.replace('-', ' ')}"] = curve
    files.write_bytes(FOLDER / "curves.csv", curves.table(named).encode())
    return curves.picture(found)


def draw_grids(entries: Sequence[Entry], manifest: prepared.Prepared) -> dict[str, Image.Image]:
    """The picture grids by file name: one for each split, and further ones where methods are too many for one."""
    drawn = {}
    for split in dict.fromkeys(entry.evaluation.split for entry in entries):
        shown = [entry for entry in entries if entry.evaluation.split == split]
        pairs = manifest.splits.get(split, ())
        pairs = [pair for pair in pairs if any(prediction_file(entry, pair).is_file() for entry in shown)]
        for first in range(0, len(shown) if pairs else 0, grids.COLUMNS):
            some = shown[first : first + grids.COLUMNS]
            rows = []
            for pair in pairs:
                predictions = [read_prediction(prediction_file(entry, pair)) for entry in some]
                rows.append(grids.Row(pair.name, prepared.open_image(pair), prepared.open_label(pair), predictions))
            number = f"-{first // grids.COLUMNS + 1}" if len(shown) > grids.COLUMNS else ""
            picture = grids.grid([entry.name for entry in some], rows, manifest.classes, manifest.palette)
            drawn[f"pictures/{pictures.safe_name(split)}{number}.png"] = picture
    return drawn


def prediction_file(entry: Entry, pair: prepared.Pair) -> Path:
    """Where an evaluation keeps its prediction of an image."""
    return RESULTS / entry.name / "pictures" / f"{pictures.safe_name(pair.name)}.prediction.png"


def read_prediction(path: Path) -> np.ndarray | None:
    """The class ids (H, W) of an indexed PNG; None where there is none."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        name = path.parents[1].name
        raise UserError(f"{path} does not decode ({error}): run `uv run dvc repro --force --single-item evaluate@{name}`") from None
