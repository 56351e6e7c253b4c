"""Sheets of panels for papers: one look, one set of sizes, PNG and SVG; the one file that imports matplotlib.

Maps of numbers are cividis, differences PuOr, directions twilight, lines Okabe and Ito's blue and orange: all of them suit every kind
of colour vision. Names of classes, runs and images are shown as they are: never read as formulas, cut where they are long.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.pictures import coloured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel: TypeAlias = "Axes"

SEQUENTIAL, DIVERGING, CYCLIC = "cividis", "PuOr", "twilight"
BLUE, ORANGE, MARK = "#0072B2", "#D55E00", "#FF0080"
PANEL = 2.4  # inches of a panel's width
DPI, MOST = 200, 6000  # of a PNG; pixels of its longer side
LONGEST = 24  # characters of a name
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "figure.titlesize": 9, "axes.linewidth": 0.6, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "svg.hashsalt": "figures", "svg.fonttype": "path", "image.interpolation": "nearest", "text.parse_math": False,
    "savefig.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """A figure and its panels, row by row."""

    figure: "Figure"
    panels: list[list["Axes"]]


def sheet(rows: int, columns: int, title: str, *, size: tuple[float, float] | None = None, shape: float = 0.7) -> Sheet:
    """A sheet of rows x columns panels. size: inches (width, height); by default panels of one width, `shape` times as high."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        width, height = size or (columns * PANEL, rows * (shape * PANEL + 0.35) + 0.7)
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        figure.suptitle(plain(title))
    return Sheet(figure, [list(row) for row in panels])


def plain(text: str) -> str:
    """Text as it can be drawn: one line, and ? for what the font has no sign for."""
    known = _signs()
    return "".join(sign if ord(sign) in known else "?" for sign in " ".join(text.split()))


def named(names: Sequence[str]) -> list[str]:
    """Names of classes for axes and legends: cut where long; by number where the font has none of a name's signs."""
    shown = []
    for number, name in enumerate(names):
        text = plain(name)
        text = text if text.strip("? ") or not text.strip() else f"class {number}"
        shown.append(text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…")
    return shown


def _signs() -> frozenset[int]:
    if not _known:
        from matplotlib import font_manager, ft2font

        font = ft2font.FT2Font(font_manager.findfont(str(STYLE["font.family"])))
        _known.append(frozenset(font.get_charmap()))
    return _known[0]


_known: list[frozenset[int]] = []


def heading(panel: Panel, text: str) -> None:
    """A panel's title."""
    panel.set_title(plain(text), fontsize=8)


def bare(panel: Panel, title: str = "") -> None:
    """A panel without axes: of an image, or empty."""
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    heading(panel, title)


def picture(panel: Panel, pixels_HW3: NDArray[Any], title: str, size: tuple[int, int] | None = None) -> None:
    """An RGB image; size: the height and width in pixels that it is stretched to."""
    height, width = size or pixels_HW3.shape[:2]
    panel.imshow(pixels_HW3, extent=(0, width, height, 0))
    bare(panel, title)


def heat(sheet: Sheet, panel: Panel, values_HW: NDArray[Any], title: str, *, size: tuple[int, int] | None = None, colours: str = SEQUENTIAL,
         limits: tuple[float, float] | None = None, label: str = "", bar: bool = True) -> None:  # fmt: skip
    """A map of numbers with its scale; size as in `picture`, limits: the values of the scale's ends."""
    height, width = size or values_HW.shape
    low, high = limits or (float(np.nanmin(values_HW)), float(np.nanmax(values_HW)))
    drawn = panel.imshow(values_HW, cmap=colours, vmin=low, vmax=high, extent=(0, width, height, 0))
    bare(panel, title)
    if bar:
        scale = sheet.figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.03, aspect=18)
        scale.ax.tick_params(labelsize=6, width=0.5, length=2)
        scale.outline.set_linewidth(0.4)
        scale.set_label(label, fontsize=7)


def mark(panel: Panel, pixel: tuple[int, int], size: float = 6.0) -> None:
    """A ring about a pixel (row, column) of the image."""
    place = ([pixel[1] + 0.5], [pixel[0] + 0.5])
    panel.plot(*place, "o", markersize=size, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2.4)
    panel.plot(*place, "o", markersize=size, markerfacecolor="none", markeredgecolor=MARK, markeredgewidth=1.2)


def outline(panel: Panel, regions_HW: NDArray[Any], colour: str = "white", width: float = 0.5) -> None:
    """Thin lines between the regions of a label map that has the image's size."""
    from matplotlib.collections import LineCollection

    rows, columns = np.nonzero(regions_HW[:, 1:] != regions_HW[:, :-1])
    lines = [((column + 1, row), (column + 1, row + 1)) for row, column in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(regions_HW[1:] != regions_HW[:-1])
    lines += [((column, row + 1), (column + 1, row + 1)) for row, column in zip(rows, columns, strict=True)]
    panel.add_collection(LineCollection(lines, colors=colour, linewidths=width, rasterized=len(lines) > 20_000), autolim=False)


def segmentation(panel: Panel, ids_HW: NDArray[np.uint8], palette: Sequence[Sequence[int]], title: str) -> None:
    """Class ids in the classes' colours, void hatched."""
    picture(panel, coloured(ids_HW, palette), title)


def errors(panel: Panel, ids_HW: NDArray[np.uint8], labels_HW: NDArray[np.uint8], void: int) -> None:
    """Wrong pixels in dark on light grey, void hatched; the title is the share of right ones."""
    known_HW = labels_HW != void
    wrong_HW = (ids_HW != labels_HW) & known_HW
    share = 1 - np.count_nonzero(wrong_HW) / max(np.count_nonzero(known_HW), 1)
    title = f"errors; {100 * share:.1f} % are right"
    picture(panel, coloured(np.where(known_HW, wrong_HW, void).astype(np.uint8), ((225, 225, 225), (150, 20, 60))), title)


def changes(sheet: Sheet, panel: Panel, before_HW: NDArray[np.uint8], after_HW: NDArray[np.uint8], labels_HW: NDArray[np.uint8], void: int,
            title: str) -> None:  # fmt: skip
    """What became right, what became wrong, and what is wrong in another way."""
    from matplotlib.patches import Patch

    right_before, right_after = before_HW == labels_HW, after_HW == labels_HW
    kinds_HW = np.select([before_HW == after_HW, right_after, right_before], [0, 1, 2], 3).astype(np.uint8)
    colours = ((225, 225, 225), (0, 114, 178), (213, 94, 0), (120, 120, 120))
    picture(panel, coloured(np.where(labels_HW == void, void, kinds_HW).astype(np.uint8), colours), title)
    names = ("mended", "spoilt", "wrong still")
    fields = [Patch(facecolor=[part / 255 for part in colour]) for colour in colours[1:]]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "ncols": 3, "frameon": False}
    panel.legend(fields, names, **below, fontsize=6, handlelength=0.9, handleheight=0.9, columnspacing=0.8, handletextpad=0.4)


def legend(sheet: Sheet, classes: Sequence[str], palette: Sequence[Sequence[int]], maps: Sequence[NDArray[np.uint8]]) -> None:
    """The names of the classes that the maps have, below the panels."""
    from matplotlib.patches import Patch

    found = sorted({int(value) for ids_HW in maps for value in np.unique(ids_HW) if value < len(classes)})
    names = named(classes)
    fields = [Patch(facecolor=[part / 255 for part in palette[id_]], edgecolor="black", linewidth=0.3) for id_ in found]
    columns = max(1, int(sheet.figure.get_figwidth() / (0.35 + 0.068 * max((len(names[id_]) for id_ in found), default=1))))
    labels = [names[id_] for id_ in found]
    place = {"loc": "outside lower center", "ncols": min(columns, max(1, len(found))), "frameon": False}
    drawn = sheet.figure.legend(fields, labels, **place, fontsize=7, handlelength=1.1, handleheight=1.1, columnspacing=1.2)
    rows = -(-len(found) // max(1, columns))
    sheet.figure.set_figheight(sheet.figure.get_figheight() + 0.17 * rows)
    for text in drawn.get_texts():
        text.set_parse_math(False)


def matrix(sheet: Sheet, panel: Panel, values_KK: NDArray[Any], classes: Sequence[str], title: str, *, colours: str = SEQUENTIAL,
           limits: tuple[float, float], label: str = "", names_left: bool = True) -> None:  # fmt: skip
    """A matrix over classes with their names on both axes."""
    drawn = panel.imshow(values_KK, cmap=colours, vmin=limits[0], vmax=limits[1])
    names, places = named(classes), range(len(classes))
    panel.set_xticks(places, names, rotation=90, fontsize=name_size(len(classes)))
    panel.set_yticks(places, names if names_left else [""] * len(names), fontsize=name_size(len(classes)))
    panel.tick_params(length=2, width=0.4, pad=2)
    heading(panel, title)
    scale = sheet.figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.02, aspect=30)
    scale.ax.tick_params(labelsize=6, width=0.5, length=2)
    scale.outline.set_linewidth(0.4)
    scale.set_label(label, fontsize=7)


def name_size(classes: int) -> float:
    """Points of names on an axis: smaller where they are many, on a sheet that has grown."""
    return 7.0 if classes <= 30 else 5.5


def side(classes: int) -> float:
    """Inches of a matrix over classes without its names: each needs its line."""
    return max(2.2, classes * (0.16 if classes <= 30 else 0.105))


def save(made: Sheet, path: Path) -> None:
    """Write `path`.png and `path`.svg; equal figures give equal bytes."""
    import matplotlib

    dpi = min(DPI, MOST / max(made.figure.get_size_inches()))
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            made.figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
        files.write_bytes(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())
