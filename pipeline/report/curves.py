"""Training curves: the published records of several runs, thinned, as one CSV (for `dvc plots`) and one picture."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pipeline.evaluation.pictures import INK, PAPER, font
from pipeline.ground.errors import UserError
from pipeline.labels.palette import distinct

POINTS = 200  # of a curve; each is the mean of as many rows as it takes
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, KEY = 900, 380, 64, 20, 44, 220  # pixels; KEY is the legend's width
GRID = (225, 225, 225)
Curve = list[tuple[float, float]]


def read(path: Path) -> Curve:
    """(step, loss) of a record seed-<s>.csv, at most `POINTS` of them; rows without a finite loss are left out."""
    try:
        with path.open(newline="") as file:
            points = [(float(row["step"]), float(row["loss"])) for row in csv.DictReader(file) if row["step"] and row["loss"]]
    except (KeyError, ValueError, OSError, csv.Error) as error:
        raise UserError(f"{path} is no training record ({type(error).__name__}: {error}): train {path.parents[1].name} again") from None
    return thinned([point for point in points if all(map(math.isfinite, point))])


def thinned(points: Curve) -> Curve:
    """The means of equally long pieces, at the last step of each."""
    size = max(1, math.ceil(len(points) / POINTS))
    pieces = [points[first : first + size] for first in range(0, len(points), size)]
    return [(piece[-1][0], math.fsum(loss for _, loss in piece) / len(piece)) for piece in pieces]


def table(curves: Mapping[str, Curve]) -> str:
    """All curves as CSV: run, step, loss."""
    rows = [f"{name},{step:g},{loss:.6g}" for name, curve in curves.items() for step, loss in curve]
    return "\n".join(["run,step,loss", *rows]) + "\n"


def picture(runs: Mapping[str, Sequence[Curve]]) -> Image.Image:
    """Loss over steps, a colour for each run and a line for each of its seeds; drawn at twice the size, for smooth lines."""
    points = [point for seeds in runs.values() for curve in seeds for point in curve]
    steps, losses = [step for step, _ in points] or [1.0], [loss for _, loss in points] or [1.0]
    highest = ceiling(sorted(losses)[int(0.995 * (len(losses) - 1))])  # a few first losses would flatten the rest
    scale = (WIDTH - LEFT - KEY) / max(steps), (HEIGHT - TOP - BOTTOM) / highest
    lines = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), PAPER)
    draw = ImageDraw.Draw(lines)
    for value in ticks(highest):
        y = 2 * (HEIGHT - BOTTOM - value * scale[1])
        draw.line([(2 * LEFT, y), (2 * (WIDTH - KEY), y)], GRID, 2)
    colours = dict(zip(runs, distinct(len(runs)), strict=True))
    for run, curve in ((run, curve) for run, seeds in runs.items() for curve in seeds):
        places = [(2 * (LEFT + step * scale[0]), 2 * (HEIGHT - BOTTOM - min(loss, highest) * scale[1])) for step, loss in curve]
        draw.line(places, colours[run], 4, joint="curve")
    canvas = lines.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    label(canvas, highest, max(steps), scale, colours)
    return canvas


def label(canvas: Image.Image, highest: float, last: float, scale: tuple[float, float], key: Mapping[str, Sequence[int]]) -> None:
    """The axes' numbers and names, and the legend at the right."""
    draw = ImageDraw.Draw(canvas)
    for value in ticks(highest):
        draw.text((LEFT - 8, HEIGHT - BOTTOM - value * scale[1]), f"{value:g}", INK, font(12), anchor="rm")
    for value in ticks(last):
        draw.text((LEFT + value * scale[0], HEIGHT - BOTTOM + 12), f"{value:g}", INK, font(12), anchor="mm")
    draw.text((LEFT + (WIDTH - LEFT - KEY) / 2, HEIGHT - 14), "step", INK, font(13), anchor="mm")
    draw.text((4, 2), "training loss", INK, font(13))
    room = (HEIGHT - TOP) // 18
    for index, (name, colour) in enumerate(list(key.items())[:room]):
        y = TOP + 8 + 18 * index
        draw.line([(WIDTH - KEY + 16, y), (WIDTH - KEY + 40, y)], tuple(colour), 3)
        name = name[:24] if index < room - 1 or len(key) <= room else f"and {len(key) - index} more"
        draw.text((WIDTH - KEY + 48, y), name, INK, font(13), anchor="lm")


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 to `highest`, four to eight of them."""
    unit = 10 ** math.floor(math.log10(highest))
    step = next(factor * unit for factor in (0.1, 0.2, 0.25, 0.5, 1, 2) if highest / (factor * unit) <= 6)
    return [round(index * step, 12) for index in range(math.floor(highest / step + 1e-9) + 1)]


def ceiling(value: float) -> float:
    """The next round number above a loss."""
    if value <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(value)) / 5
    return math.ceil(value / unit) * unit
