"""What stands in a sheet's panels: pictures, maps of numbers, segmentations and their errors, matrices over classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.pictures import coloured
from pipeline.figures import canvas

RIGHT, WRONG = (225, 225, 225), (150, 20, 60)
CHANGES = {"mended": (0, 114, 178), "spoilt": (213, 94, 0), "wrong still": (120, 120, 120)}


def picture(panel: canvas.Panel, pixels_HW3: NDArray[Any], title: str, size: tuple[int, int] | None = None) -> None:
    """An RGB image; size: the height and width in pixels that it is stretched to."""
    height, width = size or pixels_HW3.shape[:2]
    panel.imshow(pixels_HW3, extent=(0, width, height, 0))
    canvas.bare(panel, title)


def photograph(panel: canvas.Panel, image_HW3: NDArray[np.uint8], title: str) -> None:
    """The image that is looked at, with no more pixels than can be seen."""
    size = image_HW3.shape[:2]
    if (share := canvas.FINEST / max(size)) < 1:
        smaller = max(1, round(size[1] * share)), max(1, round(size[0] * share))
        image_HW3 = np.asarray(Image.fromarray(image_HW3).resize(smaller, Image.Resampling.LANCZOS))
    picture(panel, image_HW3, title, size)


def heat(sheet: canvas.Sheet, panel: canvas.Panel, values_HW: NDArray[Any], title: str, *, size: tuple[int, int] | None = None,
         colours: str = canvas.SEQUENTIAL, limits: tuple[float, float] | None = None, label: str = "",
         bar: bool = True) -> None:  # fmt: skip
    """A map of numbers with its scale; size as in `picture`, limits: the values of the scale's ends."""
    height, width = size or values_HW.shape
    low, high = limits or (float(np.nanmin(values_HW)), float(np.nanmax(values_HW)))
    drawn = panel.imshow(values_HW, cmap=colours, vmin=low, vmax=high, extent=(0, width, height, 0))
    canvas.bare(panel, title)
    if bar:
        canvas.scale(sheet, panel, drawn, label)


def numbers(sheet: canvas.Sheet, panel: canvas.Panel, values_NN: NDArray[Any], title: str, label: str) -> None:
    """A small square of numbers with its scale, written into their fields."""
    values_NN = np.ma.masked_invalid(values_NN)
    drawn = panel.imshow(values_NN, cmap=canvas.SEQUENTIAL)
    middle = (float(values_NN.min()) + float(values_NN.max())) / 2
    for (row, column), value in np.ndenumerate(values_NN.filled(np.nan)):
        if not np.isnan(value) and len(values_NN) <= 7:
            colour = "black" if value > middle else "white"
            panel.text(column, row, f"{value:#.3g}".rstrip("."), ha="center", va="center", fontsize=7, color=colour)
    canvas.bare(panel, title)
    canvas.scale(sheet, panel, drawn, label)


def mark(panel: canvas.Panel, pixel: tuple[int, int], size: float = 6.0) -> None:
    """A ring about a pixel (row, column) of the image."""
    place = ([pixel[1] + 0.5], [pixel[0] + 0.5])
    panel.plot(*place, "o", markersize=size, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2.4)
    panel.plot(*place, "o", markersize=size, markerfacecolor="none", markeredgecolor=canvas.MARK, markeredgewidth=1.2)


def segmentation(panel: canvas.Panel, ids_HW: NDArray[np.uint8], palette: Sequence[Sequence[int]], title: str) -> None:
    """Class ids in the classes' colours, void hatched."""
    picture(panel, coloured(ids_HW, palette), title)


def errors(panel: canvas.Panel, ids_HW: NDArray[np.uint8], labels_HW: NDArray[np.uint8], void: int) -> None:
    """Wrong pixels in dark on light grey, void hatched; the title is the share of right ones."""
    known_HW = labels_HW != void
    wrong_HW = (ids_HW != labels_HW) & known_HW
    share = 1 - np.count_nonzero(wrong_HW) / max(np.count_nonzero(known_HW), 1)
    title = f"errors; {100 * share:.1f} % are right"
    picture(panel, coloured(np.where(known_HW, wrong_HW, void).astype(np.uint8), (RIGHT, WRONG)), title)


def changes(panel: canvas.Panel, before_HW: NDArray[np.uint8], after_HW: NDArray[np.uint8], labels_HW: NDArray[np.uint8], void: int,
            title: str) -> None:  # fmt: skip
    """What became right, what became wrong, and what is wrong in another way."""
    right_before, right_after = before_HW == labels_HW, after_HW == labels_HW
    kinds_HW = np.select([before_HW == after_HW, right_after, right_before], [0, 1, 2], 3).astype(np.uint8)
    picture(panel, coloured(np.where(labels_HW == void, void, kinds_HW).astype(np.uint8), (RIGHT, *CHANGES.values())), title)
    canvas.key(panel, list(CHANGES), list(CHANGES.values()))


def matrices(count: int, classes: Sequence[str], title: tuple[str, str]) -> canvas.Sheet:
    """A sheet for matrices over classes, side by side: each class gets a line's height."""
    side = max(2.6, len(classes) * (0.17 if len(classes) <= 30 else 0.1))
    room = 0.12 + canvas.widest(canvas.named(classes), name_size(len(classes)))
    return canvas.sheet(1, count, title, size=(side, side), scales=range(count), margins=canvas.Margins(left=room, below=room))


def name_size(classes: int) -> float:
    """Points of names on an axis: smaller where they are many, on a sheet that has grown."""
    return 7.0 if classes <= 30 else 5.5


def matrix(sheet: canvas.Sheet, panel: canvas.Panel, values_KK: NDArray[Any], classes: Sequence[str], title: str, *,
           colours: str = canvas.SEQUENTIAL, limits: tuple[float, float], label: str = "") -> None:  # fmt: skip
    """A matrix over classes with their names on both axes."""
    drawn = panel.imshow(values_KK, cmap=colours, vmin=limits[0], vmax=limits[1])
    names, places = canvas.named(classes), range(len(classes))
    panel.set_xticks(places, names, rotation=90, fontsize=name_size(len(classes)))
    panel.set_yticks(places, names, fontsize=name_size(len(classes)))
    panel.tick_params(length=2, width=0.4, pad=2)
    canvas.heading(panel, title)
    canvas.scale(sheet, panel, drawn, label)
