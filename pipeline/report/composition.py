"""What each method is made of and how it is evaluated, in words: the parts, and where settings leave those of the first one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.entries import Entry
from pipeline.settings import config
from pipeline.settings.schema import Finetune

# What the table of parts shows, or what cannot change a result.
ELSEWHERE = ("name", "seed", "inputs", "launch", "data", "head", "crf", "loss", "superpixels", "superpixel_set", "projection", "finetune")


def composition(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """What each method is made of and how it is evaluated, and where its settings leave the first one's; without empty columns."""
    rows = []
    for entry in entries:
        run, chosen = entry.config, entry.config.superpixel_set
        row = {name: options(part.name, part.options) for name, part in (("head", run.head), ("crf", run.crf), ("loss", run.loss))}
        row["superpixels"] = "" if chosen is None else f"{run.superpixels}: {chosen.algorithm}, {chosen.segments} segments"
        row["projection"] = run.projection
        row["fine-tuned"] = "" if run.finetune is None else origin(run.finetune)
        row["evaluated with"] = evaluated_apart(entry, entries[0])
        row[f"unlike {entries[0].name}"] = unlike(flat(run), flat(entries[0].config))
        rows.append(row | {"seeds": ", ".join(str(seed) for seed in entry.results["seeds"])})
    shown = [title for title in rows[0] if any(row[title] for row in rows)]
    return [{title: row[title] for title in shown} for row in rows]


def origin(finetune: Finetune) -> str:
    """What a finetune starts from, and what it does not train or see."""
    words = [f"from {finetune.source}"]
    if finetune.freeze:
        words.append(f"frozen {', '.join(finetune.freeze)}")
    if finetune.images is not None:
        words.append(f"on {len(finetune.images)} images")
    if finetune.alternate:
        words.append("unary and joint steps in turn")
    return "; ".join(words)


def options(name: str, values: Mapping[str, Any]) -> str:
    """A part with its options."""
    return name if not values else f"{name} ({', '.join(f'{key} {text(value)}' for key, value in values.items())})"


def unlike(own: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Where settings leave others, in words."""
    return "; ".join(f"{key} {text(own.get(key))}" for key in {**usual, **own} if own.get(key) != usual.get(key))


def evaluated_apart(entry: Entry, first: Entry) -> str:
    """Where an evaluation's settings leave the first one's; a dense CRF in any case."""
    words = [] if entry.evaluation.dense_crf is None else ["dense CRF"]
    others = unlike(evaluation(entry) | {"dense_crf": None}, evaluation(first) | {"dense_crf": None})
    return "; ".join([*words, others] if others else words)


def evaluation(entry: Entry) -> dict[str, Any]:
    """The settings of an evaluation that can change its result."""
    raw = config.adapter(type(entry.evaluation)).dump_python(entry.evaluation, mode="json")
    return {key: value for key, value in raw.items() if key not in ("name", "of", "launch")}


def flat(run: config.Config) -> dict[str, Any]:
    """A run's settings that have no column of their own, keys joined by dots."""
    nested = config.to_dict(run)
    found = {}
    for section, value in nested.items():
        if section not in ELSEWHERE:
            found |= {f"{section}.{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {section: value}
    return {key: value for key, value in found.items() if key != "train.seeds"}


def text(value: Any) -> str:
    """A setting's value as YAML writes it, about."""
    return value if isinstance(value, str) else json.dumps(value)
