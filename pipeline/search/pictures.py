"""Pictures of a search: parallel coordinates, importance, and mIoU against each parameter (as the E-CRF paper's Table 3 has it).

Only scores after equal numbers of steps are compared: what ended early is drawn apart. Colours: Okabe and Ito's, and viridis.
"""

import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.figures import canvas
from pipeline.figures.canvas import BLUE, ORANGE, Margins, Panel, Sheet
from pipeline.search.space import Range, Search, Value, written
from pipeline.search.suggestions import distribution, place_of
from pipeline.search.trials import Outcome

GREY = "#8A8A8A"
FEWEST = 4  # trials from which an importance is told
TREES = 64
EARLY, FAILED = "ended early, after fewer steps", "failed"


def draw(search: Search, outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write all pictures as PNG and SVG, in place of those that are there; returns the PNG files."""
    shutil.rmtree(folder, ignore_errors=True)
    with canvas.style():
        sheets = {"parallel": parallel(search, outcomes)}
        if (found := importance(search, outcomes)) is not None:
            sheets["importance"] = found
        for path in search.space:
            sheets[f"miou-{path}"] = against(search, path, outcomes)
        for name, made in sheets.items():
            canvas.save(made, folder / name)
    return [folder / f"{name}.png" for name in sheets]


def about(search: Search, outcomes: Sequence[Outcome]) -> str:
    """Of what a picture is."""
    where = "training images that are held out" if search.split is None else f"split {search.split}"
    return f"run {search.run}, {len(outcomes)} trials, scored on {where}"


def key(made: Sheet, panel: Panel) -> None:
    """What the marks mean, below the panel."""
    handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    if handles:
        canvas.grow(made, 0.25)
        made.figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=3, frameon=False, fontsize=8)


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


def against(search: Search, path: str, outcomes: Sequence[Outcome]) -> Sheet:
    """The mIoU against one parameter; the other parameters differ too, unless there is one alone, whose points are joined."""
    title = (f"mIoU against {path}", about(search, outcomes))
    made = canvas.sheet(1, 1, title, size=(4.6, 3.0), margins=Margins(left=0.6, below=0.5, above=0.1, right=0.15))
    entry, panel = search.space[path], made.panels[0][0]
    groups = {state: [outcome for outcome in outcomes if outcome.state == state] for state in ("finished", "early", "failed")}

    def points(state: str) -> tuple[list[float], list[float]]:
        chosen = sorted((position(each.values[path], entry), 100 * (each.miou or 0)) for each in groups[state] if each.scores)
        return [x for x, _ in chosen], [y for _, y in chosen]

    done, early = points("finished"), points("early")
    if len(search.space) == 1 and numeric(entry):
        panel.plot(*done, color=BLUE, linewidth=1, zorder=1)
    if done[0]:
        steps = max(outcome.steps for outcome in groups["finished"])
        panel.scatter(*done, color=BLUE, s=28, zorder=3, label=f"trained to the end ({steps} steps)")
    if early[0]:
        panel.scatter(*early, marker="v", facecolors="none", edgecolors=ORANGE, s=28, zorder=2, label=EARLY)
    scale(panel, entry)
    if groups["failed"]:
        places = [position(each.values[path], entry) for each in groups["failed"]]
        bottom = panel.get_xaxis_transform()  # they have no score
        panel.scatter(places, [0.03] * len(places), marker="x", color="black", s=28, zorder=3, label=FAILED, transform=bottom)
    panel.set_xlabel(path)
    panel.set_ylabel("mIoU (%)")
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    key(made, panel)
    return made


def scale(panel: Panel, entry: Range) -> None:
    """The x axis of a parameter."""
    if not numeric(entry):
        panel.set_xticks(range(len(entry.values or [])), [written(value) for value in entry.values or []])
    elif entry.log:
        low, high = entry.between
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 1000 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        panel.set_xscale("log")
        panel.set_xticks(ticks or [low, high], [f"{tick:g}" for tick in ticks or [low, high]])
        panel.minorticks_off()
        panel.set_xlim(low / 1.06, high * 1.06)


def parallel(search: Search, outcomes: Sequence[Outcome]) -> Sheet:
    """A line for each trial through its values; the colour is the mIoU of those that were trained to the end."""
    paths = list(search.space)
    size = (max(4.0, 1.5 * len(paths)), 3.0)
    made = canvas.sheet(1, 1, ("Trials", about(search, outcomes)), size=size, margins=Margins(left=0.5, below=0.5, above=0.15, right=0.3))
    panel = made.panels[0][0]
    done = [100 * (outcome.miou or 0) for outcome in outcomes if outcome.state == "finished"]
    low, high = (min(done), max(done)) if done else (0.0, 1.0)
    colours = panel.scatter([], [], c=[], cmap="viridis", vmin=0, vmax=1)
    for outcome in sorted(outcomes, key=lambda each: (each.state == "finished", each.miou or 0)):
        heights = [height(outcome.values[path], search.space[path]) for path in paths]
        if outcome.state == "finished":
            end = (100 * (outcome.miou or 0) - low) / (high - low) if high > low else 0.5
            panel.plot(range(len(paths) + 1), [*heights, end], color=colours.to_rgba(np.array([end]))[0], linewidth=1.5, zorder=3)
        elif outcome.state in ("early", "failed"):
            style: dict[str, Any] = {"color": GREY, "linewidth": 0.8} if outcome.state == "early" else {"color": "black", "linestyle": ":"}
            panel.plot(range(len(paths)), heights, zorder=2, label=EARLY if outcome.state == "early" else FAILED, **style)
    for index, path in enumerate(paths):
        axis(panel, index, ends(search.space[path]))
    axis(panel, len(paths), [(0.0, f"{low:.1f}"), (1.0, f"{high:.1f}")] if high > low else [(0.5, f"{low:.1f}")])
    panel.set_xticks(range(len(paths) + 1), [*map(title, paths), "mIoU (%)\ntrained to the end"])
    panel.set_yticks([])
    panel.tick_params(length=0)
    panel.set_xlim(-0.1, len(paths) + 0.2)
    panel.set_ylim(-0.08, 1.08)
    for side in panel.spines.values():
        side.set_visible(False)
    key(made, panel)
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


def axis(panel: Panel, index: int, labels: Sequence[tuple[float, str]]) -> None:
    """A vertical axis with its labels."""
    panel.axvline(index, ymin=0.08 / 1.16, ymax=1.08 / 1.16, color="black", linewidth=0.8, zorder=1)
    for place, label in labels:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        panel.annotate(label, (index, place), (4, 0), textcoords="offset points", va="center", fontsize=7, zorder=4, bbox=box)


def importance(search: Search, outcomes: Sequence[Outcome]) -> Sheet | None:
    """How much of the score's variance each parameter explains (Hutter et al., fANOVA, 2014); None with too few trials.

    It takes the scores after the most steps that at least half of the trials have come to.
    """
    steps, shares = shares_of(search, outcomes)
    if not shares:
        return None
    count = sum(steps in dict(outcome.scores) for outcome in outcomes)
    paths = sorted(shares, key=lambda path: shares[path])
    margins = Margins(left=0.3 + canvas.widest(paths, 7), below=0.5, above=0.1, right=0.2)
    made = canvas.sheet(1, 1, ("What the mIoU depends on", about(search, outcomes)), size=(3.4, 0.3 + 0.3 * len(paths)), margins=margins)
    panel = made.panels[0][0]
    bars = panel.barh(paths, [100 * shares[path] for path in paths], color=BLUE, height=0.6)
    panel.bar_label(bars, fmt="%.0f", padding=3)
    panel.set_xlabel(f"share of the variance after {steps} steps, in % ({count} trials)")
    panel.set_xlim(0, 112)
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
