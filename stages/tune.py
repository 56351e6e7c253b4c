"""Search for better numbers: `uv run python -m stages.tune` runs what `tune` in params.yaml declares.

Writes tune/trials.csv, all trials, the best first; tune/best.yaml, the best values by their paths; tune/pictures. A search that was stopped
goes on; with other settings, data or code it starts afresh, in a folder of its own.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.runs import fingerprint as fingerprints
from pipeline.search import space, suggestions, trials
from pipeline.search.space import Search, Value
from pipeline.search.tracking import mirrored
from pipeline.search.trials import Outcome, Trials
from pipeline.settings import config
from pipeline.settings.schema import Params
from pipeline.settings.strict import read_yaml
from stages.check import check, check_prepared
from stages.command import run

if TYPE_CHECKING:
    from cluster.room import Room

FOLDER = Path("tune")
SETTINGS = "settings.json"


def main() -> None:
    """The command."""
    argparse.ArgumentParser(prog="uv run python -m stages.tune", description="Search for better numbers.").parse_args()
    params = config.load()
    wanted = space.read(params)
    check(params)
    check_prepared(params)

    from cluster.room import room

    given = room(params.launch, wanted)
    settings = space.settings(params, wanted)
    name = space.fingerprint_of(settings)
    folder = FOLDER / f"search-{name}"
    with files.locked(folder / "lock", f"the search {folder}"):
        begin(folder, settings)
        with mirrored(folder, params.data.dataset, wanted.run, name, settings["tune"], params.launch.tracking):
            go_on(params, wanted, folder, given)


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Put what a new search depends on into its folder, and name the one that it leaves behind."""
    if (folder / SETTINGS).exists():
        return
    earlier = sorted(FOLDER.glob(f"search-*/{SETTINGS}"), key=lambda path: path.stat().st_mtime)
    if earlier:
        changed = fingerprints.differences(files.read_json(earlier[-1], "delete its folder"), dict(settings))
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        what = "; ".join(changed[:8]) + more
        warn(f"{earlier[-1].parent} had other settings, so this search starts afresh and leaves it behind: {what}")
    files.write_json(folder / SETTINGS, dict(settings))


def go_on(params: Params, wanted: Search, folder: Path, given: "Room") -> None:
    """Run what is left of the search, and publish."""
    found, count = Trials(folder), suggestions.size(wanted)
    if found.all:
        left = len(found.unfinished)
        print(f"{folder}: of {count} trials {len(found.all) - left} have ended before" + (f", {left} go on" if left else ""))
    else:
        print(f"{folder}: {count} trials, {wanted.concurrent} at a time, {given.launch.processes} process(es) each")

    def told(outcome: Outcome) -> None:
        print(line(outcome, count), flush=True)
        files.write_bytes(FOLDER / trials.TABLE, trials.table(list(wanted.space), found.all))

    from cluster.search import search

    iterations = {**params.methods, **params.finetunes}[wanted.run].train.iterations
    search(wanted, folder, given, iterations, found, told)
    publish(wanted, folder, found.all, params.path)


def line(outcome: Outcome, count: int) -> str:
    """A trial's news for people."""
    said = f"trial {outcome.number + 1} of {count}: {space.shown(outcome.values)}: "
    if outcome.state == "failed":
        return said + f"failed: {outcome.reason}"
    score = "no score" if outcome.miou is None else f"mIoU {100 * outcome.miou:.2f} after {outcome.steps} steps"
    return said + score + {"running": "", "early": ", ended early", "finished": ", finished"}[outcome.state]


def publish(wanted: Search, folder: Path, outcomes: Sequence[Outcome], file: Path) -> None:
    """Write the table, the best values and the pictures, to the search's folder and to tune/, and print the best."""
    table = trials.table(list(wanted.space), outcomes)
    for place in (folder, FOLDER):
        files.write_bytes(place / trials.TABLE, table)
    states = {state: sum(outcome.state == state for outcome in outcomes) for state in ("finished", "early", "failed")}
    print(
        f"{len(outcomes)} trials: {states['finished']} trained to the end, {states['early']} ended early, {states['failed']} failed: "
        f"{FOLDER / trials.TABLE}"
    )
    from pipeline.search.pictures import draw

    for place in (folder, FOLDER):
        draw(wanted, outcomes, place / "pictures")
    best = trials.best(outcomes)
    if best is None or best.miou is None:
        first = next((outcome.reason for outcome in outcomes if outcome.reason), "nothing")
        raise UserError(f"no trial was scored; the first one says: {first}")
    command = apply(read_yaml(file).raw, best.values)
    for place in (folder, FOLDER):
        files.write_bytes(place / trials.BEST, trials.patch(best.values, command))
    whole = "" if best.state == "finished" else " (no trial was trained to its end)"
    print(f"best: trial {best.number + 1}, mIoU {100 * best.miou:.2f} after {best.steps} steps{whole}: {FOLDER / trials.BEST}\n  {command}")


def apply(raw: Mapping[str, Any], values: Mapping[str, Value]) -> str:
    """The command that runs the workflow with the values; what params.yaml leaves to its default is added, which needs a +."""
    parts = []
    for path, value in values.items():
        added = "" if present(raw, path.split(".")) else "+"
        parts.append(f"-S {shlex.quote(f'{added}{path}={space.written(value)}')}")
    return f"uv run dvc exp run {' '.join(parts)}"


def present(raw: Any, keys: Sequence[str]) -> bool:
    """Whether a path is written out in params.yaml."""
    return not keys or (isinstance(raw, Mapping) and keys[0] in raw and present(raw[keys[0]], keys[1:]))


if __name__ == "__main__":
    raise SystemExit(run(main))
