"""The page's tables of scores: the leaderboard, and the IoU of every class."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.report import tables
from pipeline.report.composition import evaluated_apart
from pipeline.report.embedding import breakable, element
from pipeline.report.entries import Entry, peers
from pipeline.report.sections import PROTOCOLS, main_radii, radii

MINUS = "\u2212"  # as wide as a plus
ARROW = '<span class="arrow" aria-hidden="true"></span>'
NAMES = {"present": "F, where present", "gscnn": "F, as GSCNN counts"}


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard: where its number is, how it is written, and whether more is better (None: neither)."""

    title: str
    note: str
    path: tuple[str, ...]
    written: Callable[[float | None], str]
    more: bool | None
    boundary: str | None = None  # convention and radius


def columns(entries: Sequence[Entry]) -> list[Column]:
    """All columns; of the boundary scores the page shows one at a time."""
    single = "single_scale"
    found = [
        Column("mIoU", "single scale", (single, "miou"), tables.percent, True),
        Column("mIoU", "multi-scale + flip", ("multi_scale_flip", "miou"), tables.percent, True),
        Column("pixel accuracy", "single scale", (single, "pixel_accuracy"), tables.percent, True),
        Column("mean accuracy", "single scale", (single, "mean_accuracy"), tables.percent, True),
    ]
    for convention in NAMES:
        for radius in radii(entries):
            path = (single, "boundary_f", radius, convention)
            found.append(Column(f"boundary F, {radius}\u00a0px", "single scale", path, tables.percent, True, f"{convention} {radius}"))
    return [
        *found,
        Column("parameters", "millions", ("cost", "parameters"), lambda value: tables.scaled(value, 1e6, 2), False),
        Column("GFLOPs", "an image", ("cost", "flops"), lambda value: tables.scaled(value, 1e9, 2), False),
        Column("images/s", "single scale", ("cost", "images_per_second"), lambda value: tables.scaled(value, 1, 1), True),
        Column("training", "one seed", ("cost", "train_seconds"), tables.duration, False),
    ]


def leaderboard(entries: Sequence[Entry]) -> str:
    """The table of methods: a row for each, its numbers with their spread, and below them the difference to the baseline."""
    shown = columns(entries)
    radius = (main_radii(entries) or [""])[-1]
    chosen = f"present {radius}"
    head = [heading("method", "", first=True)]
    head += [heading(column.title, column.note, boundary=column.boundary, hidden=column.boundary not in (None, chosen)) for column in shown]
    rows = []
    for entry in entries:
        seeds = len(entry.results["seeds"])
        notes = [f"of {entry.evaluation.of}"] if entry.name != entry.evaluation.of else []
        notes += [f"{seeds} seeds"] if seeds > 1 else []
        notes += filter(None, [evaluated_apart(entry, entries[0])])
        name = element("code", breakable(entry.name)) + (element("span", html.escape(", ".join(notes)), class_="note") if notes else "")
        cells = [element("th", name, scope="row", data_v=entry.name)]
        cells += [score(entry, entries, column, hidden=column.boundary not in (None, chosen)) for column in shown]
        rows.append(element("tr", "".join(cells)))
    table = element("thead", element("tr", "".join(head))) + element("tbody", "\n".join(rows))
    return element("table", table, id="board", class_="sortable")


def best_of(entries: Sequence[Entry], column: Column) -> str | None:
    """How a column's best number is written, so that equal cells are equally bold."""
    known = [value for entry in entries if (value := entry.value(*column.path)) is not None]
    if len(known) < 2:
        return None
    return column.written(max(known) if column.more else min(known))


def heading(title: str, note: str, *, first: bool = False, boundary: str | None = None, hidden: bool = False) -> str:
    """A column's heading: a button that sorts by it."""
    words = html.escape(title) + (element("span", html.escape(note), class_="note") if note else "")
    button = element("button", words + ARROW, type="button")
    return element("th", button, scope="col", class_="name" if first else "number", data_f=boundary, hidden=hidden, aria_sort="none")


def score(entry: Entry, entries: Sequence[Entry], column: Column, *, hidden: bool) -> str:
    """A cell: the number, its spread over the seeds, and the difference to the baseline (points, or a factor for costs)."""
    value, deviation, first = entry.value(*column.path), entry.spread(*column.path), entries[0]
    kind = "cost" if column.path[0] == "cost" else "score"
    text = column.written(value)
    best = value is not None and text == best_of(peers(entry, entries), column)
    content = element("b", html.escape(text)) if best else html.escape(text)
    if value is not None and deviation is not None:
        content += element("span", f" ±{column.written(deviation)}", class_="spread")
    compared = entry is not first and entry.images == first.images
    content += element("span", difference(value, first.value(*column.path), kind) if compared else "", class_="delta")
    return element("td", content, data_v="" if value is None else repr(value), data_k=kind, data_f=column.boundary, hidden=hidden)


def difference(value: float | None, other: float | None, kind: str) -> str:
    """The distance from the baseline: percent points, or a factor."""
    if value is None or other is None or (kind == "cost" and not other):
        return ""
    return tables.difference(value, other).replace("-", MINUS) if kind == "score" else f"{value / other:.2f}×"  # noqa: RUF001


def heat(entries: Sequence[Entry], classes: Sequence[str], palette: Sequence[Sequence[int]], shares: Sequence[float] | None) -> str:
    """The IoU of every class and method in percent, both protocols' in the cells' attributes; `shares` are those of labelled pixels."""
    head = [heading("class", "", first=True)]
    head += [heading("share", "% of pixels")] if shares else []
    for entry in entries:
        name = element("code", breakable(entry.name), style=f"min-width:{min(13, len(entry.name)) + 0.5}ch")
        button = element("button", name + ARROW, type="button")
        head.append(element("th", button, scope="col", class_="number", data_m=entry.name, aria_sort="none"))
    rows = []
    for index, name in enumerate(classes):
        swatch = element("span", "", class_="swatch", style=f"background:rgb({','.join(map(str, palette[index]))})", aria_hidden="true")
        cells = [element("th", swatch + html.escape(name), scope="row", data_v=name)]
        cells += [element("td", f"{100 * shares[index]:.1f}", data_s=repr(shares[index]))] if shares else []
        cells += [warm(entry, "iou", name) for entry in entries]
        rows.append(element("tr", "".join(cells)))
    last = [element("th", "mean", scope="row")] + ([element("td", "")] if shares else [])
    foot = element("tfoot", element("tr", "".join([*last, *(warm(entry, "miou") for entry in entries)])))
    table = element("thead", element("tr", "".join(head))) + element("tbody", "\n".join(rows)) + foot
    return element("table", table, id="heat", class_="sortable")


def warm(entry: Entry, *path: str) -> str:
    """A cell of the heat map; `data-v` and `data-w` are the single and the multi-scale IoU, empty for a class that is nowhere."""
    values = [entry.value(protocol, *path) for protocol in PROTOCOLS]
    first, second = ("" if value is None else repr(value) for value in values)
    text = tables.NOTHING if values[0] is None else f"{100 * values[0]:.1f}"
    return element("td", text, class_="heat", data_v=first, data_w=second, style=None if values[0] is None else f"--t:{values[0]:.3f}")
