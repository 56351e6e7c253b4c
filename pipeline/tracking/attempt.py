"""One training as its record tells it: whose it is, its rows, and the words in which MLflow takes them."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ATTEMPT = "mlflow.json"  # beside the record: whose it is, for a pass that comes later


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One training of one seed, as MLflow shall see it. `started` is in seconds since 1970; `record` is metrics.jsonl."""

    experiment: str
    name: str
    seed: int
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    record: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    status: str = "RUNNING"


def address() -> str:
    """Where MLflow's store is: `MLFLOW_TRACKING_URI`, or a SQLite file here."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def identity(attempt: Attempt) -> dict[str, str]:
    """The tags by which a run is found again."""
    return {"run": attempt.name, "seed": str(attempt.seed), "fingerprint": attempt.fingerprint}


def read_attempt(file: Path) -> Attempt:
    """The attempt that a record belongs to."""
    return Attempt(**json.loads(file.read_text()))


def read_record(record: Path) -> list[dict[str, Any]]:
    """The record's rows; a last line that is being written is left for the next pass."""
    rows = []
    for line in record.read_text().splitlines() if record.exists() else ():
        with contextlib.suppress(ValueError):
            if isinstance(row := json.loads(line), dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def flat(values: Any, separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined and reduced to the letters that MLflow takes."""
    if not isinstance(values, Mapping):
        return {prefix[:250]: values}
    joined: dict[str, Any] = {}
    for key, value in values.items():
        joined |= flat(value, separator, f"{prefix}{separator if prefix else ''}{word(key)}")
    return joined


def word(key: Any) -> str:
    """A key's segment in the letters that MLflow takes; a class may be called anything."""
    safe = re.sub(r"[^\w .-]", "_", str(key), flags=re.ASCII).strip()
    return safe if safe.strip(".") else f"_{safe}"


def text(value: Any) -> str:
    """A parameter's value; MLflow takes 6000 characters."""
    return (value if isinstance(value, str) else json.dumps(value))[:6000]


def number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    """The items in order, `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def shown(uri: str) -> str:
    """An address without the password that it may carry."""
    return re.sub(r"//[^@/]*@", "//", uri)


def reason(error: Exception) -> str:
    """An error's first line, short."""
    return shown(next(iter(str(error).splitlines()), ""))[:120] or type(error).__name__
