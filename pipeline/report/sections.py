"""The report's chapters in Markdown, from the evaluations that it shows; the first is what the others are compared with."""

from collections.abc import Mapping, Sequence

from pipeline.report import tables
from pipeline.report.composition import composition, evaluation, flat, text
from pipeline.report.entries import Entry, peers
from pipeline.report.tables import NOTHING, best_of, bold, code, difference, escaped, markdown, percent
from pipeline.settings import config

PROTOCOLS = {"single_scale": "single scale", "multi_scale_flip": "multi-scale + flip"}
CONVENTIONS = {"present": "F_present", "gscnn": "F_gscnn"}
Entries = Sequence[Entry]


def chapters(entries: Entries, classes: Sequence[str], images: int, grids: Sequence[str]) -> str:
    """The whole of index.md. `images` is the number of training images; `grids` are the files of the picture grids."""
    data = entries[0].config.data
    sizes = split_sizes(entries)
    evaluated = " and ".join(f"{count} image{'' if count == 1 else 's'} of its split {code(split)}" for split, count in sizes.items())
    parts = [
        f"# {escaped(data.dataset)}: {len(entries)} method{'s' if len(entries) > 1 else ''} side by side\n",
        f"Trained on {images} image{'' if images == 1 else 's'} of {escaped(data.dataset)} ({len(classes)} classes), "
        f"evaluated on {evaluated}. Scores are percent, means over the seeds{spread_note(entries)}.{comparison(entries)}\n",
        "## Methods\n", headline(entries),
        "F is the boundary F-score at a radius in pixels, of each class over the images where it is present (F_present).\n",
        *(f"![predictions]({name})\n" for name in grids),
        "Predictions are those of the first seed, multi-scale + flip; `results/<evaluation>/pictures` has their errors.\n" if grids else "",
        "## Cost\n", cost(entries),
        "## All scores\n", *scores(entries),
        "Where a class is neither in the prediction nor in the labels of an image, F_gscnn counts 1, and F_present leaves the image out.\n",
        "## Classes\n", *per_class(entries, classes),
        "## Training\n", "![training loss](pictures/curves.png)\n",
        "The records are `runs/<method>/weights/seed-<seed>.csv`; `uv run dvc plots show` draws them with values to point at.\n",
        "## Settings\n", parts_table(entries), settings(entries),
    ]  # fmt: skip
    return "\n".join(parts)


def split_sizes(entries: Entries) -> dict[str, int]:
    """How many images of each split were evaluated, by the evaluation that took most."""
    found: dict[str, int] = {}
    for entry in entries:
        split = entry.evaluation.split
        found[split] = max(found.get(split, 0), int(entry.results.get("images", 0)))
    return found


def spread_note(entries: Entries) -> str:
    """What stands behind the plus-minus sign, where there is one."""
    return " ± the standard deviation" if any(len(entry.results["seeds"]) > 1 for entry in entries) else ""


def comparison(entries: Entries) -> str:
    """How the tables compare, where there is something to compare."""
    if len(entries) == 1:
        return ""
    alike = "" if len({entry.images for entry in entries}) == 1 else " Those evaluated on the same images are compared, no others."
    return f" In brackets: percent points above {code(entries[0].name)}. Bold: the best of its column.{alike}"


def score(entry: Entry, entries: Entries, *path: str, spread: bool = True) -> str:
    """A score with its spread and its distance from the first method's, bold where it is the best."""
    value, deviation, first = entry.value(*path), entry.spread(*path), entries[0]
    cell = bold(percent(value), value, best_of([other.value(*path) for other in peers(entry, entries)]))
    if spread and deviation is not None:
        cell += f" ± {percent(deviation)}"
    above = difference(value, first.value(*path)) if entry.images == first.images else ""
    return f"{cell} ({above})" if entry is not first and above else cell


def score_table(entries: Entries, columns: Mapping[str, tuple[str, ...]], *, spread: bool = True) -> str:
    """A table of scores: a row for each method, a column for each path into the results."""
    rows = [[code(entry.name), *(score(entry, entries, *path, spread=spread) for path in columns.values())] for entry in entries]
    return markdown(["method", *columns], rows)


def radii(entries: Entries) -> list[str]:
    """All radii of the boundary score, the smallest first."""
    found = {radius for entry in entries for protocol in PROTOCOLS for radius in entry.results[protocol].get("boundary_f", {})}
    return sorted(found, key=int)


def main_radii(entries: Entries) -> list[str]:
    """The two radii of the headline: 1 and 3 where they were measured."""
    known = radii(entries)
    return [radius for radius in ("1", "3") if radius in known] or known[:2]


def headline(entries: Entries) -> str:
    """The table of methods."""
    columns = {
        "mIoU": ("single_scale", "miou"),
        "mIoU, multi-scale + flip": ("multi_scale_flip", "miou"),
        "pixel accuracy": ("single_scale", "pixel_accuracy"),
        "mean accuracy": ("single_scale", "mean_accuracy"),
    }
    return score_table(
        entries, columns | {f"F {radius} px": ("single_scale", "boundary_f", radius, "present") for radius in main_radii(entries)}
    )


def scores(entries: Entries) -> list[str]:
    """For each protocol, the areas' scores and the boundaries' at all radii under both conventions."""
    found = []
    for protocol, title in PROTOCOLS.items():
        areas = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy"}
        found += [f"### {title.capitalize()}\n", score_table(entries, {name: (protocol, key) for name, key in areas.items()})]
        for convention, name in CONVENTIONS.items():
            columns = {f"{name}, {radius} px": (protocol, "boundary_f", radius, convention) for radius in radii(entries)}
            found.append(score_table(entries, columns, spread=False))
    return found


def per_class(entries: Entries, classes: Sequence[str]) -> list[str]:
    """A table of every class's IoU for each protocol; the second is folded away."""
    found = []
    for protocol, title in PROTOCOLS.items():
        rows = [[escaped(name), *bold_row(entries, protocol, "iou", name)] for name in classes]
        rows.append(["*mean*", *bold_row(entries, protocol, "miou")])
        table = f"IoU, {title}{'; bold: the best of its class' if len(entries) > 1 else ''}.\n\n" + markdown(
            ["class", *(code(entry.name) for entry in entries)], rows
        )
        found.append(table if protocol == "single_scale" else f"<details><summary>{title.capitalize()}</summary>\n\n{table}\n</details>\n")
    return found


def bold_row(entries: Entries, *path: str) -> list[str]:
    """A score of every method, bold where it is the best of those on the same images."""
    values = [(entry.value(*path), best_of([other.value(*path) for other in peers(entry, entries)])) for entry in entries]
    return [bold(percent(value), value, best) for value, best in values]


def cost(entries: Entries) -> str:
    """What each method costs."""
    rows = []
    for entry in entries:
        steps = {int(training["steps"]) for training in entry.trainings if training.get("steps")}
        devices = {str(training["device"]) for training in entry.trainings if training.get("device")}
        memory = [training["peak_memory_bytes"] for training in entry.trainings if training.get("peak_memory_bytes")]
        fast, slow = entry.spread("cost", "images_per_second"), entry.spread("cost", "train_seconds")
        cells = [
            tables.scaled(entry.value("cost", "parameters"), 1e6, 2),
            tables.scaled(entry.value("cost", "flops"), 1e9, 2),
            tables.scaled(entry.value("cost", "images_per_second"), 1, 1) + ("" if fast is None else f" ± {tables.scaled(fast, 1, 1)}"),
            tables.size(entry.value("cost", "peak_memory_bytes")),
            ", ".join(f"{step:,}" for step in sorted(steps)) or NOTHING,
            tables.duration(entry.value("cost", "train_seconds")) + ("" if slow is None else f" ± {tables.duration(slow)}"),
            tables.size(max(memory, default=None)),
            str(len(entry.results["seeds"])),
            ", ".join(escaped(device) for device in sorted(devices)) or NOTHING,
        ]
        rows.append([code(entry.name), *cells])
    header = [
        "method",
        "million parameters",
        "GFLOPs an image",
        "images/s",
        "memory",
        "steps",
        "training time",
        "training memory",
        "seeds",
        "device",
    ]
    note = "Memory is the peak; images/s, GFLOPs (twice the multiply-adds) and memory are of single-scale evaluation; time is one seed's.\n"
    return markdown(header, rows) + "\n" + note


def parts_table(entries: Entries) -> str:
    """What each method is made of."""
    rows = composition(entries)
    cells = [[code(entry.name), *(escaped(part) for part in row.values())] for entry, row in zip(entries, rows, strict=True)]
    header = ["method", *(escaped(title) for title in rows[0])]
    return markdown(header, cells, words=len(header))


def settings(entries: Entries) -> str:
    """All settings of the first method, folded away, and how evaluations ran."""
    first = entries[0]
    data = config.adapter(type(first.config.data)).dump_python(first.config.data, mode="json")
    known = {f"data.{key}": value for key, value in data.items() if key != "root"} | flat(first.config)
    known |= {f"evaluate.{key}": value for key, value in evaluation(first).items()}
    rows = [[code(key), escaped(text(value))] for key, value in known.items()]
    return (
        f"<details><summary>All settings of {code(first.name)}</summary>\n\n{markdown(['setting', 'value'], rows, words=2)}\n</details>\n"
    )


def terminal(entries: Entries) -> str:
    """The table of methods for a terminal of 100 columns."""
    first, rows = entries[0], []
    for entry in entries:
        cells = [entry.name]
        for protocol in PROTOCOLS:
            value, deviation = entry.value(protocol, "miou"), entry.spread(protocol, "miou")
            spread = f"±{percent(deviation)}" if deviation is not None and protocol == "single_scale" else ""
            cells.append(percent(value) + spread)
            if len(entries) > 1:
                apart = entry is first or entry.images != first.images
                cells.append("" if apart else difference(value, first.value(protocol, "miou")))
        cells += [percent(entry.value("single_scale", key)) for key in ("pixel_accuracy", "mean_accuracy")]
        cells += [percent(entry.value("single_scale", "boundary_f", radius, "present")) for radius in main_radii(entries)]
        cells += [tables.scaled(entry.value("cost", "parameters"), 1e6, 1), tables.duration(entry.value("cost", "train_seconds"))]
        rows.append(cells)
    above = ["+-"] if len(entries) > 1 else []
    header = ["method", "mIoU", *above, "ms+flip", *above, "pixels", "classes", *(f"F {radius}px" for radius in main_radii(entries))]
    return tables.plain([*header, "Mparam", "training"], rows)
