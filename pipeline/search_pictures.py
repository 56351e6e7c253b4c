"""Pictures of a search: parallel coordinates, importance, and mIoU against each parameter (as the E-CRF paper's Table 3 has it).

Only scores after equal numbers of steps are compared: what ended early is drawn apart. Colours: Okabe and Ito's, and viridis.
"""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.search import Range, Search, Value, written
from pipeline.suggestions import distribution, place_of
from pipeline.trials import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"
FEWEST = 4  # trials from which an importance is told
TREES = 64
EARLY, FAILED = "ended early, after fewer steps", "failed"


def draw(search: Search, outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write all pictures as PNG and SVG; returns the PNG files."""
    figures = {"parallel": parallel(search, outcomes)}
    if (found := importance(search, outcomes)) is not None:
        figures["importance"] = found
    for path in search.space:
        figures[f"miou-{path}"] = against(search, path, outcomes)
    made = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
            files.write_bytes(folder / f"{name}.{kind}", content.getvalue())
        made.append(folder / f"{name}.png")
    return made


def figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty figure, in inches, that no window belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    return made, made.add_subplot()


def title(path: str) -> str:
    """A path that fits under an axis."""
    *parents, last = path.split(".")
    return f"{'.'.join(parents)}\n{last}"


def position(value: Value, entry: Range) -> float:
    """Where a value stands on its axis: a number where it is, anything else at its place in the list."""
    return float(value) if numeric(entry) else float(place_of(value, entry))  # type: ignore[arg-type]


def numeric(entry: Range) -> bool:
    """Whether all values are numbers."""
    return entry.values is None or all(isinstance(value, int | float) and not isinstance(value, bool) for value in entry.values)


def against(search: Search, path: str, outcomes: Sequence[Outcome]) -> "Figure":
    """The mIoU against one parameter; the other parameters differ too, unless there is one alone, whose points are joined."""
    entry, (made, axes) = search.space[path], figure(6.4, 4.2)
    groups = {state: [outcome for outcome in outcomes if outcome.state == state] for state in ("finished", "early", "failed")}

    def points(state: str) -> tuple[list[float], list[float]]:
        chosen = sorted((position(each.values[path], entry), 100 * (each.miou or 0)) for each in groups[state] if each.scores)
        return [x for x, _ in chosen], [y for _, y in chosen]

    done = points("finished")
    steps = max((outcome.steps for outcome in groups["finished"]), default=0)
    if len(search.space) == 1 and numeric(entry):
        axes.plot(*done, color=BLUE, linewidth=1, zorder=1)
    axes.scatter(*done, color=BLUE, s=42, zorder=3, label=f"trained to the end ({steps} steps)")
    early = points("early")
    if early[0]:
        axes.scatter(*early, marker="v", facecolors="none", edgecolors=ORANGE, s=42, zorder=2, label=EARLY)
    if groups["failed"]:
        places = [position(each.values[path], entry) for each in groups["failed"]]
        bottom = axes.get_xaxis_transform()  # they have no score
        axes.scatter(places, [0.03] * len(places), marker="x", color="black", s=42, zorder=3, label=FAILED, transform=bottom)
    scale(axes, entry)
    axes.set_xlabel(path)
    axes.set_ylabel("mIoU (%), images that are held out" if search.split is None else f"mIoU (%), {search.split}")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.13), ncol=3, frameon=False, fontsize=9)
    return made


def scale(axes: "Axes", entry: Range) -> None:
    """The x axis of a parameter."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not numeric(entry):
        axes.set_xticks(range(len(entry.values or [])), [written(value) for value in entry.values or []])
    elif entry.log:
        axes.set_xscale("log")
        axes.set_xlim(entry.between[0] / 1.06, entry.between[1] * 1.06)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def parallel(search: Search, outcomes: Sequence[Outcome]) -> "Figure":
    """A line for each trial through its values; the colour is the mIoU of those that were trained to the end."""
    from matplotlib import colormaps

    paths = list(search.space)
    made, axes = figure(max(6.4, 2.2 * (len(paths) + 1)), 4.6)
    done = [100 * (outcome.miou or 0) for outcome in outcomes if outcome.state == "finished"]
    low, high = (min(done), max(done)) if done else (0.0, 1.0)
    colours = colormaps["viridis"]
    for outcome in sorted(outcomes, key=lambda each: (each.state == "finished", each.miou or 0)):
        heights = [height(outcome.values[path], search.space[path]) for path in paths]
        if outcome.state == "finished":
            score = 100 * (outcome.miou or 0)
            end = (score - low) / (high - low) if high > low else 0.5
            axes.plot(range(len(paths) + 1), [*heights, end], color=colours(end), linewidth=1.8, zorder=3)
        elif outcome.state in ("early", "failed"):
            style: dict[str, Any] = {"color": GREY, "linewidth": 0.9} if outcome.state == "early" else {"color": "black", "linestyle": ":"}
            axes.plot(range(len(paths)), heights, zorder=2, label=EARLY if outcome.state == "early" else FAILED, **style)
    for index, path in enumerate(paths):
        axis(axes, index, ends(search.space[path]))
    axis(axes, len(paths), [(0.0, f"{low:.1f}"), (1.0, f"{high:.1f}")] if high > low else [(0.5, f"{low:.1f}")])
    axes.set_xticks(range(len(paths) + 1), [*map(title, paths), "mIoU (%)\ntrained to the end"])
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(paths) + 0.45)
    axes.set_ylim(-0.08, 1.08)
    for side in axes.spines.values():
        side.set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 1.12), ncol=2, frameon=False, fontsize=9)
    return made


def height(value: Value, entry: Range) -> float:
    """Where a value crosses its axis, from 0 (the lowest of the range) to 1."""
    if entry.values is not None:
        return place_of(value, entry) / (len(entry.values) - 1)
    low, high = entry.between
    number = float(value)  # type: ignore[arg-type]
    if entry.log:
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def ends(entry: Range) -> list[tuple[float, str]]:
    """The labels of an axis: its ends, or all values of a list."""
    if entry.values is not None:
        return [(index / (len(entry.values) - 1), written(value)) for index, value in enumerate(entry.values)]
    low, high = entry.between
    return [(0.0, f"{low:g}"), (1.0, f"{high:g}")]


def axis(axes: "Axes", index: int, labels: Sequence[tuple[float, str]]) -> None:
    """A vertical axis with its labels."""
    axes.axvline(index, ymin=0.08 / 1.16, ymax=1.08 / 1.16, color="black", linewidth=0.8, zorder=1)
    for place, label in labels:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.annotate(label, (index, place), (4, 0), textcoords="offset points", va="center", fontsize=9, zorder=4, bbox=box)


def importance(search: Search, outcomes: Sequence[Outcome]) -> "Figure | None":
    """How much of the score's variance each parameter explains (Hutter et al., fANOVA, 2014); None with too few trials.

    It takes the scores after the most steps that at least half of the trials have come to.
    """
    steps, shares = shares_of(search, outcomes)
    if not shares:
        return None
    count = sum(steps in dict(outcome.scores) for outcome in outcomes)
    paths = sorted(shares, key=lambda path: shares[path])
    made, axes = figure(6.4, 1.4 + 0.45 * len(paths))
    bars = axes.barh(paths, [100 * shares[path] for path in paths], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(f"share of the variance of mIoU after {steps} steps, in % ({count} trials)")
    axes.set_xlim(0, 108)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return made


def shares_of(search: Search, outcomes: Sequence[Outcome]) -> tuple[int, dict[str, float]]:
    """The steps that are looked at, and each parameter's share; no shares with too few trials, or where all score the same."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    scored = [outcome for outcome in outcomes if outcome.scores]
    reached = [steps for outcome in scored for steps, _ in outcome.scores]
    steps = max((steps for steps in reached if 2 * reached.count(steps) >= len(scored)), default=0)
    chosen = [(outcome, dict(outcome.scores)[steps]) for outcome in scored if steps in dict(outcome.scores)]
    if len(chosen) < FEWEST or len({score for _, score in chosen}) < 2:
        return steps, {}
    space = {path: distribution(entry) for path, entry in search.space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for outcome, score in chosen:
        params = {path: place_of(outcome.values[path], entry) for path, entry in search.space.items()}
        study.add_trial(create_trial(params=params, distributions=space, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library's next release
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=TREES, seed=0))
    return steps, {path: float(found.get(path, 0.0)) for path in space}
