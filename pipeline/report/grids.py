"""Picture grids: rows are images, columns the image, its labels and every method's prediction, with a legend below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.evaluation.pictures import INK, PAPER, coloured, drawable, font

WIDEST = 1600  # pixels of a grid, about
CELL = (150, 320)  # the least and the largest width of a cell
COLUMNS = 6  # methods in one grid; more go to further grids
MARGIN, GAP, LINE = 16, 8, 20
SOFT = (110, 110, 110)
LEGEND_ALL = 40  # more classes than this, and the legend has only those that occur
Palette = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One image, its labels (H, W) and predictions (H, W) in the order of the grid's columns; None: not there."""

    name: str
    image: Image.Image
    labels_HW: NDArray[np.uint8]
    predictions: Sequence[NDArray[np.uint8] | None]


def grid(titles: Sequence[str], rows: Sequence[Row], classes: Sequence[str], palette: Palette) -> Image.Image:
    """The grid of `rows`; `titles` are those of the predictions' columns."""
    titles = ["image", "labels", *titles]
    left, right = CELL
    cell = max(left, min(right, (WIDEST - 2 * MARGIN) // len(titles) - GAP))
    sizes = [fitted(row.image.size, cell) for row in rows]
    key = legend(shown_classes(rows, len(classes)), classes, palette, len(titles) * (cell + GAP) - GAP)
    height = 2 * MARGIN + LINE + 2 + sum(height for _, height in sizes) + len(rows) * (LINE + GAP) + GAP + key.height
    canvas = Image.new("RGB", (2 * MARGIN + len(titles) * (cell + GAP) - GAP, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        write(draw, (MARGIN + column * (cell + GAP), MARGIN - 4), title, cell, 15)
    top = MARGIN + LINE + 2
    for row, size in zip(rows, sizes, strict=True):
        write(draw, (MARGIN, top), row.name, canvas.width - 2 * MARGIN, 12, SOFT)
        paste_row(canvas, row, size, (cell, top + LINE - 2), palette)
        top += LINE + size[1] + GAP
    canvas.paste(key, (MARGIN, top + GAP))
    return canvas


def fitted(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """An image's width and height in the grid: as wide as its cell, but not higher than that."""
    factor = cell / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def paste_row(canvas: Image.Image, row: Row, size: tuple[int, int], place: tuple[int, int], palette: Palette) -> None:
    """The cells of one image, at `place` (a cell's width, the top). Class maps are scaled, then coloured: void's stripes stay."""
    cell, top = place
    cells = [row.image.resize(size, Image.Resampling.LANCZOS)]
    for ids_HW in (row.labels_HW, *row.predictions):
        if ids_HW is None:
            cells.append(absent(size))
        else:
            cells.append(Image.fromarray(coloured(np.asarray(Image.fromarray(ids_HW).resize(size, Image.Resampling.NEAREST)), palette)))
    for column, picture in enumerate(cells):
        canvas.paste(picture, (MARGIN + column * (cell + GAP), top))


def absent(size: tuple[int, int]) -> Image.Image:
    """The cell of a prediction that is not there."""
    picture = Image.new("RGB", size, (245, 245, 245))
    ImageDraw.Draw(picture).text((size[0] // 2, size[1] // 2), "no picture", fill=SOFT, font=font(12), anchor="mm")
    return picture


def shown_classes(rows: Sequence[Row], count: int) -> list[int]:
    """The class ids of the legend: all of a few, or those of many that occur in the grid."""
    if count <= LEGEND_ALL:
        return list(range(count))
    maps = [ids_HW for row in rows for ids_HW in (row.labels_HW, *row.predictions) if ids_HW is not None]
    return sorted({int(value) for ids_HW in maps for value in np.unique(ids_HW) if value < count})


def legend(ids: Sequence[int], classes: Sequence[str], palette: Palette, width: int) -> Image.Image:
    """A swatch and a name for each class id, column by column, and void's stripes last."""
    names = [drawable(classes[index]) for index in ids] + ["void: no label, not counted"]
    swatches = [coloured(np.full((14, 22), index, np.uint8), palette) for index in (*ids, 255)]
    column = min(260, 22 + 6 + 18 + max(round(font(13).getlength(name)) for name in names))
    columns = max(1, min(len(names), width // column))
    lines = -(-len(names) // columns)
    canvas = Image.new("RGB", (width, lines * LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (name, swatch) in enumerate(zip(names, swatches, strict=True)):
        x, y = index // lines * column, index % lines * LINE
        canvas.paste(Image.fromarray(swatch), (x, y + 2))
        draw.rectangle((x, y + 2, x + 21, y + 15), outline=SOFT)
        write(draw, (x + 28, y), name, column - 28 - 10, 13)
    return canvas


def write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, height: int, ink: tuple[int, int, int] = INK) -> None:
    """One line of text, shortened to `width` pixels; the end of a name tells more than its beginning."""
    text, letters = drawable(text), font(height)
    if letters.getlength(text) > width:
        while text and letters.getlength("..." + text) > width:
            text = text[1:]
        text = "..." + text
    draw.text(place, text, fill=ink, font=letters)
