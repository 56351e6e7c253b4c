"""Sheets of panels for papers: one look, one set of sizes, PNG and SVG; the one file that imports matplotlib.

Maps of numbers are cividis, differences PuOr, directions twilight, lines Okabe and Ito's blue and orange: all of them suit every kind
of colour vision. Names of classes, runs and images are shown as they are: never read as formulas, cut where they are long.
"""

import io
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.pictures import HATCH
from pipeline.ground import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel: TypeAlias = "Axes"

SEQUENTIAL, DIVERGING, CYCLIC = "cividis", "PuOr", "twilight"
BLUE, ORANGE, MARK = "#0072B2", "#D55E00", "#FF0080"
PANEL, SCALE = 2.2, 0.62  # inches of a panel's width, and of a scale beside it
FLATTEST, STEEPEST = 0.4, 1.6  # of a panel, height over width: flatter and steeper images leave some of it empty
DPI, MOST = 200, 6000  # of a PNG; pixels of its longer side
LONGEST = 24  # characters of a name
TITLE, SMALL = 8.0, 6.0  # points of a panel's title, and of a long one
FINEST = 1024  # pixels of a photograph's or outline's longer side: more are not seen, and make large files
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.titlepad": 4, "axes.linewidth": 0.6, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "svg.hashsalt": "figures", "svg.fonttype": "path", "image.interpolation": "none", "text.parse_math": False,
    "savefig.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures: they are drawn and saved in it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@dataclass(frozen=True)
class Sheet:
    """A figure and its panels, row by row."""

    figure: "Figure"
    panels: list[list[Panel]]


@dataclass(frozen=True)
class Margins:
    """Inches about each panel: of names on its left and below it, of its title above, of a scale on its right."""

    left: float = 0.06
    below: float = 0.04
    above: float = 0.22
    right: float = 0.06


def sheet(rows: int, columns: int, title: tuple[str, str], *, size: tuple[float, float] | None = None, shape: float = 0.7,
          scales: Collection[int] = (), margins: Margins | None = None) -> Sheet:  # fmt: skip
    """A sheet of rows x columns panels under a title of two lines, what it shows and of what.

    size: a panel's inches (width, height); by default of one width, `shape` times as high where an image is not very flat or steep.
    scales: the columns that have a scale on their right.
    """
    from matplotlib.figure import Figure

    about, (wide, high) = margins or Margins(), size or (PANEL, PANEL * min(max(shape, FLATTEST), STEEPEST))
    rights = [SCALE if column in scales else about.right for column in range(columns)]
    width = sum(rights) + columns * (about.left + wide)
    lines = textwrap.wrap(plain(title[1]), max(20, int(width * 14)), max_lines=3, placeholder=" …")
    top = 0.32 + 0.16 * len(lines)
    height = top + rows * (about.above + high + about.below) + 0.04
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.08 / height, plain(title[0]), ha="center", va="top", fontsize=10, fontweight="bold")
    figure.text(0.5, 1 - 0.28 / height, "\n".join(lines), ha="center", va="top", fontsize=8)
    panels = []
    for row in range(rows):
        y = height - top - (row + 1) * (about.above + high + about.below) + about.below
        lefts = [about.left + column * (about.left + wide) + sum(rights[:column]) for column in range(columns)]
        panels.append([figure.add_axes((x / width, y / height, wide / width, high / height)) for x in lefts])
    return Sheet(figure, panels)


def grow(made: Sheet, inches: float) -> None:
    """Make room below the panels."""
    height = made.figure.get_figheight()
    share = height / (height + inches)
    for panel in made.figure.axes:
        x, y, wide, high = panel.get_position(original=True).bounds
        panel.set_position((x, 1 - (1 - y) * share, wide, high * share))
    for text in made.figure.texts:
        text.set_y(1 - (1 - text.get_position()[1]) * share)
    made.figure.set_figheight(height + inches)


def scale(made: Sheet, panel: Panel, drawn: Any, label: str) -> None:
    """The scale of a map, on the panel's right."""
    x, y, wide, high = panel.get_position(original=True).bounds
    width = made.figure.get_figwidth()
    beside = made.figure.add_axes((x + wide + 0.05 / width, y, 0.09 / width, high))
    bar = made.figure.colorbar(drawn, cax=beside)
    beside.tick_params(labelsize=6, width=0.5, length=2, pad=1.5)
    bar.outline.set_linewidth(0.4)
    bar.set_label(label, fontsize=6.5, labelpad=1.5)


def plain(text: str) -> str:
    """Text as it can be drawn: one line, and ? for what the font has no sign for."""
    known = _signs()
    return "".join(sign if ord(sign) in known else "?" for sign in " ".join(text.split()))


def named(names: Sequence[str]) -> list[str]:
    """Names of classes for axes and legends: cut where long, numbered where that makes two alike or the font has no sign."""
    texts = [plain(name) for name in names]
    texts = [text if text.strip("? ") else f"class {number}" for number, text in enumerate(texts)]
    shown = [short(text) for text in texts]
    count = Counter(shown)
    return [text if count[text] == 1 else f"{text[: LONGEST - 5]} #{number}" for number, text in enumerate(shown)]


def short(text: str) -> str:
    """A name, cut where it is long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def _signs() -> frozenset[int]:
    if not _known:
        from matplotlib import font_manager, ft2font

        font = ft2font.FT2Font(font_manager.findfont(str(STYLE["font.family"])))
        _known.append(frozenset(font.get_charmap()))
    return _known[0]


_known: list[frozenset[int]] = []


def heading(panel: Panel, text: str) -> None:
    """A panel's title: as wide as the panel at most, smaller where it is long and cut where that is not enough."""
    text = plain(text)
    figure = panel.get_figure(root=True)
    assert figure is not None
    room = figure.get_figwidth() * panel.get_position(original=True).width
    share = room / widest([text], TITLE)
    if share < SMALL / TITLE:
        text = text[: max(1, int(len(text) * share * TITLE / SMALL) - 1)].rstrip() + "…"
    panel.set_title(text, fontsize=min(TITLE, max(SMALL, TITLE * share)))


def bare(panel: Panel, title: str = "") -> None:
    """A panel without axes: of an image, or empty."""
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    heading(panel, title)


def note(panel: Panel, text: str) -> None:
    """An empty panel that says why."""
    bare(panel)
    panel.text(0.5, 0.5, plain(text), ha="center", va="center", transform=panel.transAxes, fontsize=TITLE)


def outline(panel: Panel, regions_HW: NDArray[Any], colour: str = "white", width: float = 0.5, around: str | None = None) -> None:
    """Thin lines between the regions of a label map that has the image's size; around: the colour of their own borders."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Lines
    from matplotlib.patheffects import Normal, withStroke

    step = -(-max(regions_HW.shape) // FINEST)
    regions_HW = regions_HW[::step, ::step]
    x, top, bottom = borders(regions_HW[:, 1:] != regions_HW[:, :-1])
    y, left, right = borders((regions_HW[1:] != regions_HW[:-1]).T)
    upright, level = np.stack([x, top, x, bottom], 1), np.stack([left, y, right, y], 1)
    points = step * np.concatenate([upright, level]).reshape(-1, 2)  # one path of them all: thousands of lines are slow to write
    if len(points):
        path = Lines(points, np.tile([Lines.MOVETO, Lines.LINETO], len(points) // 2))
        effects = [withStroke(linewidth=2.5 * width, foreground=around), Normal()] if around else None
        panel.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=width, capstyle="projecting", path_effects=effects))


def borders(apart_HW: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """Where neighbours in a row are apart, as upright lines: the x of each, its top and its bottom."""
    steps_WH = np.diff(np.pad(apart_HW.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    (x, top), (_, bottom) = np.nonzero(steps_WH == 1), np.nonzero(steps_WH == -1)
    return x + 1, top, bottom


def key(panel: Panel, names: Sequence[str], colours: Sequence[Sequence[int]]) -> None:
    """What a few colours mean, in the panel's corner."""
    from matplotlib.patches import Patch

    fields = [Patch(facecolor=shade(colour)) for colour in colours]
    inside: dict[str, Any] = {"loc": "lower left", "ncols": len(names), "framealpha": 0.85, "borderpad": 0.3, "borderaxespad": 0.2}
    panel.legend(fields, names, **inside, fontsize=5.5, handlelength=0.9, handleheight=0.9, columnspacing=0.7, handletextpad=0.3)


def shade(colour: Sequence[int]) -> tuple[float, float, float]:
    """A colour of 0 to 255 as matplotlib wants it."""
    red, green, blue = (part / 255 for part in colour)
    return red, green, blue


def legend(sheet: Sheet, classes: Sequence[str], palette: Sequence[Sequence[int]], maps: Sequence[NDArray[np.uint8]]) -> None:
    """The names of the classes that the maps have, below the panels, and of pixels without one."""
    from matplotlib.patches import Patch

    there = sorted({int(value) for ids_HW in maps for value in np.unique(ids_HW)})
    found, names = [id_ for id_ in there if id_ < len(classes)], named(classes)
    fields = [Patch(facecolor=shade(palette[id_]), edgecolor="black", linewidth=0.3) for id_ in found]
    labels = [names[id_] for id_ in found]
    if len(found) < len(there):
        fields.append(Patch(facecolor=shade(HATCH[0]), edgecolor=shade(HATCH[1]), hatch="//////", linewidth=0))
        labels.append("void")
    room = sheet.figure.get_figwidth() / (0.42 + widest(labels, 7))
    columns = max(1, min(int(room), len(labels)))
    grow(sheet, 0.14 + 0.154 * -(-len(labels) // columns))
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0), "ncols": columns, "frameon": False, "borderaxespad": 0.1}
    sheet.figure.legend(fields, labels, **place, fontsize=7, handlelength=1.1, handleheight=1.1, columnspacing=1.2)


def widest(texts: Sequence[str], points: float) -> float:
    """The inches of the longest of the texts in a font of that size."""
    from matplotlib.textpath import TextPath

    return max((TextPath((0, 0), text, size=points).get_extents().width / 72 for text in texts if text.strip()), default=0.1)


def save(made: Sheet, path: Path) -> None:
    """Write `path`.png and `path`.svg; equal figures give equal bytes."""
    dpi = min(DPI, MOST / max(made.figure.get_size_inches()))
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        for panel in made.figure.axes:
            width = panel.get_position(original=True).width * made.figure.get_figwidth() * dpi
            for image in panel.images:  # a PNG has no room for all pixels of a large one; an SVG keeps them
                image.set_interpolation("antialiased" if kind == "png" and image.get_size()[1] > width else "none")
        made.figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
        files.write_bytes(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())
