"""What stands in a sheet's panels: pictures, maps of numbers, segmentations and their errors, matrices over classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.figures import canvas
from pipeline.pictures import coloured

RIGHT, WRONG = (225, 225, 225), (150, 20, 60)


def picture(panel: canvas.Panel, pixels_HW3: NDArray[Any], title: str, size: tuple[int, int] | None = None) -> None:
    """An RGB image; size: the height and width in pixels that it is stretched to."""
    height, width = size or pixels_HW3.shape[:2]
    panel.imshow(pixels_HW3, extent=(0, width, height, 0))
    canvas.bare(panel, title)


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


def numbers(sheet: canvas.Sheet, panel: canvas.Panel, values_NN: NDArray[Any], title: str) -> None:
    """A small square of numbers, written into their fields."""
    values_NN = np.ma.masked_invalid(values_NN)
    drawn = panel.imshow(values_NN, cmap=canvas.SEQUENTIAL)
    middle = (float(values_NN.min()) + float(values_NN.max())) / 2
    for (row, column), value in np.ndenumerate(values_NN.filled(np.nan)):
        if not np.isnan(value) and len(values_NN) <= 7:
            colour = "black" if value > middle else "white"
            panel.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color=colour)
    canvas.bare(panel, title)
    canvas.scale(sheet, panel, drawn, "")


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


def matrix(sheet: canvas.Sheet, panel: canvas.Panel, values_KK: NDArray[Any], classes: Sequence[str], title: str, *,
           colours: str = canvas.SEQUENTIAL, limits: tuple[float, float], label: str = "") -> None:  # fmt: skip
    """A matrix over classes with their names on both axes."""
    drawn = panel.imshow(values_KK, cmap=colours, vmin=limits[0], vmax=limits[1])
    names, places = canvas.named(classes), range(len(classes))
    panel.set_xticks(places, names, rotation=90, fontsize=canvas.name_size(len(classes)))
    panel.set_yticks(places, names, fontsize=canvas.name_size(len(classes)))
    panel.tick_params(length=2, width=0.4, pad=2)
    canvas.heading(panel, title)
    canvas.scale(sheet, panel, drawn, label)
