"""What was run: data, code, machine and versions, what each method is made of, and all of its settings."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data import prepared
from pipeline.ground import files, store
from pipeline.report import tables
from pipeline.report.composition import composition, evaluation, flat, text
from pipeline.report.embedding import breakable, element
from pipeline.report.entries import Entry
from pipeline.report.gallery import Measured
from pipeline.report.tables import NOTHING
from pipeline.settings import config


def facts(measured: Sequence[Measured], manifest: prepared.Prepared) -> str:
    """A table of what all methods share, or where they differ in it."""
    splits = ", ".join(f"{len(pairs):,} {split}" for split, pairs in manifest.splits.items())
    how = {key: text(value) for key, value in evaluation(measured[0].entry).items() if value is not None and key != "dense_crf"}
    rows = [
        ("dataset", f"{manifest.dataset}: {len(manifest.classes)} classes; images: {splits}"),
        ("data fingerprint", f"{files.sha256(store.PREPARED)} (SHA-256 of {store.PREPARED})"),
        ("evaluated with", "; ".join(f"{key} {value}" for key, value in how.items())),
    ]
    abouts = {entry.entry.name: entry.record.about for entry in measured if entry.record is not None}
    for key, title in {"commit": "evaluated at commit", "device": "evaluated on", "system": "system", "versions": "versions"}.items():
        rows.append((title, together({name: spelled(about.get(key)) for name, about in abouts.items()})))
    other = {name for name, about in abouts.items() if about.get("data") != files.sha256(store.PREPARED)}
    if other:
        rows.append(("of other data", f"{', '.join(sorted(other))}: prepared.json has changed since"))
    trained = {
        entry.entry.name: spelled(sorted({str(t["device"]) for t in entry.entry.trainings if t.get("device")})) for entry in measured
    }
    rows.append(("trained on", together(trained)))
    return rows_of(rows)


def rows_of(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values."""
    lines = [
        element("tr", element("th", html.escape(key), scope="row") + element("td", html.escape(value or NOTHING))) for key, value in rows
    ]
    return element("div", element("table", element("tbody", "\n".join(lines)), class_="facts"), class_="scroll")


def spelled(value: Any) -> str:
    """A value of a record for people; a commit ends with + where files differed from it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(str(inner) for inner in value)
    return "" if value is None else str(value)


def together(values: Mapping[str, str]) -> str:
    """One value where all evaluations have the same, else each value with its evaluations."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value or "not known", []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def parts(entries: Sequence[Entry]) -> str:
    """What each method is made of, and where its other settings leave the first one's."""
    rows = composition(entries)
    lines = []
    for entry, row in zip(entries, rows, strict=True):
        name = element("th", element("code", breakable(entry.name)), scope="row")
        lines.append(element("tr", name + "".join(element("td", html.escape(words or NOTHING)) for words in row.values())))
    head = element("thead", element("tr", "".join(element("th", html.escape(title), scope="col") for title in ["method", *rows[0]])))
    return element("div", element("table", head + element("tbody", "\n".join(lines)), class_="words"), class_="scroll")


def details(measured: Sequence[Measured]) -> str:
    """Every method's settings, its evaluation's, and its trainings, folded away."""
    found = []
    for entry in measured:
        about = entry.record.about if entry.record is not None else {}
        weights = about.get("weights", {})
        rows = [("of run", entry.entry.evaluation.of)]
        for number, training in enumerate(entry.entry.trainings):
            seed = str(training.get("seed", entry.entry.results["seeds"][number]))
            rows.append((f"training, seed {seed}", trained(training) + (f", fingerprint {weights[seed]}" if seed in weights else "")))
        data = config.adapter(type(entry.entry.config.data)).dump_python(entry.entry.config.data, mode="json")
        run = config.to_dict(entry.entry.config)
        rows += [(key, text(run[key])) for key in ("head", "crf", "loss", "projection", "superpixels", "superpixel_set", "finetune")]
        rows += [(f"data.{key}", text(value)) for key, value in data.items()]
        rows += [(key, text(value)) for key, value in flat(entry.entry.config).items()]
        rows += [(f"evaluate.{key}", text(value)) for key, value in evaluation(entry.entry).items()]
        summary = element("summary", element("code", breakable(entry.entry.name)))
        found.append(element("details", summary + rows_of(rows)))
    return "\n".join(found)


def trained(training: Mapping[str, Any]) -> str:
    """A training's summary in a line."""
    words = []
    if training.get("steps"):
        words.append(f"{int(training['steps']):,} steps")
    if training.get("seconds"):
        words.append(tables.duration(float(training["seconds"])))
    if training.get("peak_memory_bytes"):
        words.append(f"{tables.size(training['peak_memory_bytes'])} at most")
    if training.get("device"):
        words.append(f"on {training['device']}")
    return ", ".join(words)
