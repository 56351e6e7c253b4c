"""The page's charts as Vega-Lite, made by Altair: boundary F against the radius, training curves, accuracy against cost.

Texts and lines are drawn in `currentColor`, so that they follow the page's theme and the printer's paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.labels.palette import distinct
from pipeline.report import tables
from pipeline.report.curves import Curve
from pipeline.report.entries import Entry
from pipeline.report.placement import placed
from pipeline.report.sections import CONVENTIONS, PROTOCOLS, radii

# At least three to one against both papers of the page (WCAG 1.4.11); neighbours differ in lightness too, for eyes that miss a hue.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b5539c",
    "#3c96d2",
    "#c08300",
    "#7a5cc7",
    "#8c6d31",
    "#7f7f7f",
    "#899700",
    "#c2334d",
    "#209a9a",
)
WIDTH, HEIGHT = 860, 360  # pixels of a chart's inside
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3])
AXES = {"parameters": ("parameters, millions", 1e6), "flops": ("GFLOPs an image", 1e9), "images_per_second": ("images per second", 1.0),
        "train_seconds": ("training time, minutes", 60.0)}  # fmt: skip


def colours(count: int) -> list[str]:
    """A colour for each method."""
    more = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in distinct(len(COLOURS) + count)[len(COLOURS) :]]
    return [*COLOURS, *more][:count]


def all_charts(entries: Sequence[Entry], curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, dict[str, Any]]:
    """The charts by name. `curves` are those of the runs that were evaluated, by run and seed."""
    made: dict[str, dict[str, Any]] = {}
    if radii(entries):
        made["boundary"] = boundary(entries)
    if any(curve for seeds in curves.values() for curve in seeds.values()):
        made["training"] = training(entries, curves)
    for key in AXES:
        if any(entry.value("cost", key) and entry.value("single_scale", "miou") is not None for entry in entries):
            made[f"cost-{key}"] = accuracy(entries, key)
    return made


def finished(chart: Any) -> dict[str, Any]:
    """A chart as JSON in the page's looks."""
    words: dict[str, Any] = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12}
    axis = words | {"gridColor": "currentColor", "gridOpacity": 0.12, "domainColor": "currentColor", "tickColor": "currentColor"}
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    styled = chart.configure(background="transparent", font=font, customFormatTypes=True).configure_view(stroke=None)
    styled = styled.configure_axis(**axis, titleFontWeight="normal", titlePadding=10, domainOpacity=0.4, tickOpacity=0.4)
    styled = styled.configure_legend(**words, labelLimit=260, symbolStrokeWidth=2.5)
    spec = styled.to_dict()
    del spec["$schema"]  # an address, which nothing here needs
    return spec


@dataclass(frozen=True)
class Looks:
    """A line's name, colour and dashes."""

    name: str
    colour: str
    dashes: Sequence[int]


def looks(names: Sequence[str]) -> list[Looks]:
    """Every name's line: a colour each, and dashes from the seventh on."""
    return [
        Looks(name, colour, DASHES[place // 6 % 4]) for place, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True))
    ]


def legend(series: Sequence[Looks]) -> dict[str, Any]:
    """Colour and dashes by the series' names, in their order, with a legend that can be clicked to single one out."""
    import altair

    names = [line.name for line in series]
    key = altair.Legend(title=None, orient="right", symbolType="stroke", symbolSize=300, symbolOpacity=1, symbolLimit=len(names))
    scales = (altair.Scale(domain=names, range=[value[part] for value in map(vars, series)]) for part in ("colour", "dashes"))
    return {
        "color": altair.Color("series:N", sort=None, scale=next(scales), legend=key),
        "strokeDash": altair.StrokeDash("series:N", sort=None, scale=next(scales), legend=key),
    }


def lines(series: Sequence[Looks], x: Any, y: Any, tips: Sequence[Any]) -> list[Any]:
    """The layers of lines of several series and seeds; a click into the legend makes others faint, and the nearest point speaks.

    `highlight`, which the page sets for who uses no pointer, does the same by name.
    """
    import altair

    highlight = altair.param(name="highlight", value="")
    picked = altair.selection_point(name="picked", fields=["series"], bind="legend")
    near = altair.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    base = altair.Chart().encode(x=x, y=y, detail="seed:N", **legend(series))
    faint = {"test": "highlight != '' && datum.series != highlight", "value": 0.12}
    opacity = altair.OpacityValue(0.12, condition=[faint, {"param": "picked", "value": 1}])
    drawn = base.mark_line(strokeWidth=2, clip=True).encode(opacity=opacity)
    spoken = base.mark_point(size=60, filled=True, clip=True, strokeDash=[1, 0])
    spoken = spoken.encode(opacity=altair.condition(near, altair.value(1), altair.value(0)), tooltip=list(tips))
    return [drawn.add_params(picked, highlight), spoken.add_params(near)]


def word(field: str, title: str) -> Any:
    """A tooltip's line of text. Without a format, Vega-Lite 6 reads it from the wrong place where the nearest point speaks: undefined."""
    import altair

    return altair.Tooltip(f"{field}:N", title=title, format="", formatType="toString")


def boundary(entries: Sequence[Entry]) -> dict[str, Any]:
    """Boundary F in percent against the radius in pixels, a band of one standard deviation where there are several seeds.

    The page sets `protocol` and `convention`, which choose what is shown.
    """
    import altair

    rows: list[dict[str, Any]] = []
    for entry in entries:
        for protocol in PROTOCOLS:
            for radius in radii(entries):
                for convention in CONVENTIONS:
                    path = (protocol, "boundary_f", radius, convention)
                    if (value := entry.value(*path)) is not None:
                        spread = entry.spread(*path) or 0.0
                        row = {"series": entry.name, "p": protocol, "c": convention, "r": int(radius), "f": round(100 * value, 3)}
                        rows.append(row | {"low": round(100 * (value - spread), 3), "high": round(100 * (value + spread), 3)})
    protocol = altair.param(name="protocol", value="single_scale")
    convention = altair.param(name="convention", value="present")
    ticks = [int(radius) for radius in radii(entries)]
    x = altair.X("r:Q", title="radius, pixels", axis=altair.Axis(values=ticks, grid=False, format="d"), scale=altair.Scale(nice=False))
    y = altair.Y("f:Q", title="boundary F, percent", scale=altair.Scale(zero=False, nice=True))
    tips = [
        word("series", "method"),
        altair.Tooltip("r:Q", title="radius, px"),
        altair.Tooltip("f:Q", title="F, percent", format=".2f"),
    ]
    series = looks([entry.name for entry in entries])
    layers = lines(series, x, y, tips)
    if any(row["high"] > row["low"] for row in rows):
        band = altair.Chart().mark_area(opacity=0.15)
        layers.insert(0, band.encode(x=x, y=altair.Y("low:Q", title="boundary F, percent"), y2="high:Q", color=legend(series)["color"]))
    shown = altair.layer(*layers, data=altair.InlineData(values=rows)).transform_filter("datum.p == protocol && datum.c == convention")
    return finished(shown.add_params(protocol, convention).properties(width=WIDTH, height=HEIGHT))


def training(entries: Sequence[Entry], curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Any]:
    """The training loss against the step, in the method's colour, on a logarithmic axis: losses of several terms are large."""
    import altair

    colour = {}
    for line, entry in zip(looks([entry.name for entry in entries]), entries, strict=True):
        colour.setdefault(entry.evaluation.of, line)
    rows = []
    for run, seeds in curves.items():
        for seed, curve in sorted(seeds.items()):
            rows += [{"series": run, "seed": seed, "x": step, "y": float(f"{loss:.5g}")} for step, loss in curve]
    series = [Looks(run, colour[run].colour, colour[run].dashes) for run, seeds in curves.items() if any(seeds.values())]
    losses = [row["y"] for row in rows]
    if min(losses) > 0:
        title, scale = "training loss, logarithmic", altair.Scale(type="log", domain=[min(losses) * 0.95, max(losses) * 1.05], nice=False)
    else:
        title, scale = "training loss", altair.Scale(zero=False)
    x = altair.X("x:Q", title="step", axis=altair.Axis(grid=False, tickCount=8), scale=altair.Scale(nice=False))
    y = altair.Y("y:Q", title=title, axis=altair.Axis(tickCount=7, format="~g"), scale=scale)
    tips = [
        word("series", "run"),
        word("seed", "seed"),
        altair.Tooltip("x:Q", title="step"),
        altair.Tooltip("y:Q", title="loss", format=".4g"),
    ]
    drawn = altair.layer(*lines(series, x, y, tips), data=altair.InlineData(values=rows))
    return finished(drawn.properties(width=WIDTH, height=HEIGHT))


def accuracy(entries: Sequence[Entry], key: str) -> dict[str, Any]:
    """The single-scale mIoU in percent against one of the costs, a named point for each method."""
    import altair

    title, unit = AXES[key]
    rows: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        cost, score = entry.value("cost", key), entry.value("single_scale", "miou")
        if cost and score is not None:
            rows.append({"series": entry.name, "x": float(f"{cost / unit:.5g}"), "y": round(100 * score, 3), "shape": SHAPES[index % 6]})
    (left, right), (low, high) = padded([row["x"] for row in rows]), padded([row["y"] for row in rows])
    points = [(WIDTH * (row["x"] - left) / (right - left), HEIGHT * (high - row["y"]) / (high - low), str(row["series"])) for row in rows]
    places = placed(points, (WIDTH, HEIGHT))
    for row, (dx, dy, align) in zip(rows, places, strict=True):
        row |= {"lx": left + (right - left) * dx / WIDTH, "ly": high - (high - low) * dy / HEIGHT, "align": align}
    x = altair.X("x:Q", title=title, axis=altair.Axis(tickCount=7), scale=altair.Scale(domain=[left, right], nice=False, zero=False))
    y = altair.Y(
        "y:Q", title="mIoU, percent", axis=altair.Axis(tickCount=6), scale=altair.Scale(domain=[low, high], nice=False, zero=False)
    )
    names = [entry.name for entry in entries]
    colour = altair.Color("series:N", sort=None, scale=altair.Scale(domain=names, range=colours(len(names))), legend=None)
    tips = [
        altair.Tooltip("series:N", title="method"),
        altair.Tooltip("x:Q", title=title, format=",.4~g"),
        altair.Tooltip("y:Q", title="mIoU, percent", format=".2f"),
    ]
    base = altair.Chart(altair.InlineData(values=rows))
    points = base.mark_point(size=90, filled=True, opacity=1).encode(
        x=x, y=y, color=colour, tooltip=tips, shape=altair.Shape("shape:N", scale=None)
    )
    layers = [points]
    aligns: tuple[Literal["left", "right", "center"], ...] = ("left", "right", "center")
    for align in aligns:
        words = base.transform_filter(f"datum.align == '{align}'").mark_text(
            align=align, baseline="middle", fontSize=12, color="currentColor"
        )
        layers.append(words.encode(x=altair.X("lx:Q", title=title), y=altair.Y("ly:Q", title="mIoU, percent"), text="series:N"))
    return finished(altair.layer(*layers).properties(width=WIDTH, height=HEIGHT))


def padded(values: Sequence[float]) -> tuple[float, float]:
    """An axis's range with room around the values."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def described(entries: Sequence[Entry]) -> str:
    """A sentence for who cannot see the chart of accuracy against cost."""
    scores = {entry.name: value for entry in entries if (value := entry.value("single_scale", "miou")) is not None}
    if not scores:
        return ""
    name = max(scores, key=lambda key: scores[key])
    return f"The highest mIoU is {tables.percent(scores[name])}, by {name}."
