"""The report: report/index.html, the page; report/index.md with its pictures; and report/curves.csv for `dvc plots`.

It reads the evaluations that params.yaml names, for its dataset, and no other files; equal inputs give equal bytes.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from pipeline.data import prepared
from pipeline.evaluation import pictures, record
from pipeline.ground import files
from pipeline.report import curves, grids
from pipeline.report.entries import Entry, read, warn_of_unused
from pipeline.report.gallery import Measured, photograph, prediction_file, small_labels
from pipeline.report.page import page
from pipeline.report.sections import chapters
from pipeline.settings.schema import Params

FOLDER = Path("report")


def write(params: Params) -> list[Entry]:
    """Write the report and return what it shows, in params.yaml's order.

    Raises UserError for results that are missing, damaged or of something else, with the command that makes them.
    """
    warn_of_unused(params)
    entries = read(params)
    manifest = prepared.read()
    every = measured(entries, len(manifest.classes))
    trained = read_curves(entries)
    files.write_bytes(FOLDER / "curves.csv", curves.table(by_seed(trained)).encode())
    drawn = {"pictures/curves.png": curves.picture({run: list(seeds.values()) for run, seeds in trained.items()})}
    drawn |= draw_grids(every, manifest)
    for name, image in drawn.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.write_bytes(FOLDER / name, buffer.getvalue())
    for stale in (FOLDER / "pictures").glob("*.png"):
        if f"pictures/{stale.name}" not in drawn:
            stale.unlink()
    text = chapters(entries, manifest.classes, len(manifest.splits.get("train", ())), [name for name in drawn if "curves" not in name])
    files.write_bytes(FOLDER / "index.md", text.encode())
    files.write_bytes(FOLDER / "index.html", page(every, manifest, trained).encode())
    return entries


def measured(entries: Sequence[Entry], classes: int) -> list[Measured]:
    """The entries with their records of every image."""
    found = []
    for entry in entries:
        remedy = f"run `uv run dvc repro --force --single-item evaluate@{entry.name}`"
        found.append(Measured(entry, record.read(record.RESULTS / entry.name / record.NAME, classes, remedy)))
    return found


def read_curves(entries: Sequence[Entry]) -> dict[str, dict[int, curves.Curve]]:
    """The training curves of all runs and seeds that were evaluated, where they are there."""
    found: dict[str, dict[int, curves.Curve]] = {}
    for entry in entries:
        seeds = found.setdefault(entry.evaluation.of, {})
        for seed in entry.results["seeds"]:
            path = Path("runs") / entry.evaluation.of / "weights" / f"seed-{seed}.csv"
            if seed not in seeds and path.is_file():
                seeds[seed] = curves.read(path)
    return found


def by_seed(runs: Mapping[str, Mapping[int, curves.Curve]]) -> dict[str, curves.Curve]:
    """All curves by name; a run of one seed goes by its own name."""
    return {run if len(seeds) == 1 else f"{run} seed {seed}": curve for run, seeds in runs.items() for seed, curve in seeds.items()}


def draw_grids(measured: Sequence[Measured], manifest: prepared.Prepared) -> dict[str, Image.Image]:
    """The picture grids by file name: one for each split, and further ones where methods are too many for one."""
    drawn = {}
    for split in dict.fromkeys(entry.entry.evaluation.split for entry in measured):
        shown = [entry for entry in measured if entry.entry.evaluation.split == split]
        pairs = manifest.splits.get(split, ())
        pairs = [pair for pair in pairs if any(prediction_file(entry.entry, pair).is_file() for entry in shown)]
        for first in range(0, len(shown) if pairs else 0, grids.COLUMNS):
            some = shown[first : first + grids.COLUMNS]
            rows = [
                grids.Row(pair.name, photograph(pair), small_labels(pair), [entry.prediction(pair) for entry in some]) for pair in pairs
            ]
            number = f"-{first // grids.COLUMNS + 1}" if len(shown) > grids.COLUMNS else ""
            picture = grids.grid([entry.entry.name for entry in some], rows, manifest.classes, manifest.palette)
            drawn[f"pictures/{pictures.safe_name(split)}{number}.png"] = picture
    return drawn
