"""Search for better numbers: `uv run python -m stages.tune` runs what `tune` in params.yaml declares.

Writes tune/trials.csv, all trials, the best first, and tune/best.yaml, the best values by their paths. A search that was stopped goes
on; with other settings it starts afresh.
"""

import argparse
import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline import config, files
from pipeline import search as searches
from pipeline.check import check, check_prepared
from pipeline.errors import UserError
from pipeline.search import Search
from stages.command import run

if TYPE_CHECKING:
    from cluster.search import Outcome

FOLDER = Path("tune")


def main() -> None:
    """The command."""
    argparse.ArgumentParser(prog="uv run python -m stages.tune", description="Search for better numbers.").parse_args()
    params = config.load()
    wanted = searches.read(params)
    check(params)
    check_prepared(params)
    raw = yaml.safe_load(params.path.read_text())
    check_ends(raw, wanted, params.path)
    folder = FOLDER / f"search-{searches.fingerprint(raw)}"
    runs = {**params.methods, **params.finetunes}
    with files.locked(folder / "lock", f"the search {folder}"):
        from cluster.search import search

        outcomes = search(wanted, folder, params.launch, runs[wanted.run].train.iterations)
        publish(wanted, outcomes)


def check_ends(raw: dict, wanted: Search, file: Path) -> None:
    """Read params.yaml with the first and with the last values: what the code would refuse in a trial is told now."""
    for end in (0, 1):
        values = {path: entry.ends[end] for path, entry in wanted.space.items()}
        place = FOLDER / f".ends-{end}.yaml"
        files.write_bytes(place, yaml.safe_dump(searches.patched(raw, values, file)).encode())
        try:
            check(config.load(place))
        except UserError as error:
            shown = ", ".join(f"{path}={value}" for path, value in values.items())
            raise UserError(f"tune.space: with {shown}: {str(error).removeprefix(f'{place}: ')}") from None
        finally:
            place.unlink(missing_ok=True)


def publish(wanted: Search, outcomes: Sequence["Outcome"]) -> None:
    """Write trials.csv and best.yaml, and print the best."""
    ranked = sorted(outcomes, key=lambda outcome: (outcome.steps, outcome.miou or 0.0), reverse=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*wanted.space, "miou", "steps", "seconds", "failure"])
    for outcome in ranked:
        values = [outcome.values.get(path) for path in wanted.space]
        miou = "" if outcome.miou is None else f"{outcome.miou:.6f}"
        writer.writerow([*values, miou, outcome.steps, f"{outcome.seconds:.1f}", outcome.failure or ""])
    files.write_bytes(FOLDER / "trials.csv", text.getvalue().encode())
    failed = sum(outcome.failure is not None for outcome in outcomes)
    print(f"{len(outcomes)} trials, {failed} of them failed: {FOLDER / 'trials.csv'}")
    whole = [outcome for outcome in ranked if outcome.miou is not None and outcome.failure is None]
    if not whole:
        raise UserError(f"no trial was scored; the first one says: {outcomes[0].failure if outcomes else 'nothing'}")
    best = whole[0]
    files.write_bytes(FOLDER / "best.yaml", yaml.safe_dump(dict(best.values), sort_keys=True).encode())
    patch = " ".join(f"-S {shlex.quote(f'{path}={value}')}" for path, value in best.values.items())
    print(f"best: mIoU {100 * (best.miou or 0):.2f} after {best.steps} steps\n  uv run dvc exp run {patch}")


if __name__ == "__main__":
    raise SystemExit(run(main))
