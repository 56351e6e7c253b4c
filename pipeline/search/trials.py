"""The trials of a search, in the order in which they were chosen, and what each came to.

tune/search-<fingerprint>/trials.json    written by the one process that runs the search; the scores are in each trial's own record
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.ground import files
from pipeline.search.space import Value, written
from pipeline.search.trial import RECORD, place
from pipeline.settings.strict import adapter

JOURNAL = "trials.json"
BEST = "best.yaml"
TABLE = "trials.csv"
State = Literal["running", "finished", "early", "failed"]
Score = tuple[int, float]  # steps, mIoU


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial: chosen as which, its values, how it ended, why it failed or null, its scores by ascending steps, its seconds."""

    number: int
    values: Mapping[str, Value]
    state: State = "running"  # early: ended because others were better after as many steps
    reason: str | None = None
    scores: tuple[Score, ...] = ()
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """The steps of its last score; 0 without one."""
        return self.scores[-1][0] if self.scores else 0

    @property
    def miou(self) -> float | None:
        """Its last score."""
        return self.scores[-1][1] if self.scores else None


class Trials:
    """The trials of the search in `folder`. One process at a time changes them: it holds the search's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / JOURNAL
        found = files.read_json(self.file, f"delete {folder}, and the search starts afresh") if self.file.exists() else []
        self.all = [with_record(outcome_of(entry, folder), folder) for entry in found]

    def begin(self, values: Mapping[str, Value]) -> Outcome:
        """Note that these values are tried next."""
        self.all.append(Outcome(number=len(self.all), values=dict(values)))
        self.write()
        return self.all[-1]

    def scored(self, number: int) -> Outcome:
        """Read what a trial has come to."""
        self.all[number] = with_record(self.all[number], self.folder)
        return self.all[number]

    def end(self, number: int, state: State, reason: str | None = None) -> Outcome:
        """Note how a trial ended."""
        self.all[number] = with_record(replace(self.all[number], state=state, reason=reason), self.folder)
        self.write()
        return self.all[number]

    def write(self) -> None:
        """Put the journal on the disk."""
        files.write_json(self.file, [asdict(entry) for entry in self.all])

    @property
    def unfinished(self) -> list[Outcome]:
        """Those that were chosen and did not end."""
        return [entry for entry in self.all if entry.state == "running"]


def read_record(folder: Path, values: Mapping[str, Value]) -> dict[str, Any]:
    """What the trial of these values wrote itself; empty before its first score."""
    path = place(folder, values) / RECORD
    return files.read_json(path, "delete it, and its trial is scored again") if path.exists() else {}


def outcome_of(entry: Mapping[str, Any], folder: Path) -> Outcome:
    """A trial of the journal."""
    found = adapter(Outcome).validate_python(entry)
    again = found.state == "failed" and not place(folder, found.values).exists()
    return Outcome(number=found.number, values=found.values) if again else found


def with_record(outcome: Outcome, folder: Path) -> Outcome:
    """The outcome with what the trial itself wrote."""
    if not (record := read_record(folder, outcome.values)):
        return outcome
    found = sorted((int(steps), float(miou)) for steps, miou in record.get("scores", {}).items())
    return replace(outcome, scores=tuple(found), seconds=float(record.get("seconds", 0.0)))


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The best first: finished trials by their score, then those ended early, the furthest first, then those that failed.

    Scores are compared at equal steps alone; of equal ones the trial that was chosen first is better.
    """
    order = {"finished": 0, "early": 1, "running": 2, "failed": 3}

    def key(outcome: Outcome) -> tuple[float, ...]:
        unknown = outcome.miou is None
        whole = outcome.state == "finished"
        return order[outcome.state], 0 if whole else -outcome.steps, math.inf if unknown else -(outcome.miou or 0.0), outcome.number

    return sorted(outcomes, key=key)


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The best trial that trained to its end; while there is none, the best of those that have come furthest. None: all failed."""
    return next(iter(ranked([outcome for outcome in outcomes if outcome.state != "failed" and outcome.scores])), None)


def table(paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
    """trials.csv: one row for each trial, the best first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *paths, "miou", "steps", "state", "seconds", "reason"])
    for outcome in ranked(outcomes):
        values = [written(outcome.values[path]) for path in paths]
        miou = "" if outcome.miou is None else f"{outcome.miou:.6f}"
        writer.writerow([outcome.number + 1, *values, miou, outcome.steps, outcome.state, f"{outcome.seconds:.1f}", outcome.reason or ""])
    return text.getvalue().encode()


def patch(values: Mapping[str, Value], command: str) -> bytes:
    """best.yaml: the values by their paths, under the command that runs the workflow with them."""
    return f"# {command}\n".encode() + yaml.safe_dump(dict(values), sort_keys=True).encode()
