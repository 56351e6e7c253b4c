"""MLflow's copy of a search: a parent run with the table and the pictures, and in it a run for each trial, with its values and scores.

The search's folder is the truth, which a process beside the search reads and sends; what MLflow has is not sent again.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.ground import files
from pipeline.search.trials import BEST, TABLE, Outcome, Trials, place
from pipeline.tracking.attempt import Attempt, read_attempt
from pipeline.tracking.copy import Copy
from pipeline.tracking.mirror import excused, finish, installed, origin, start
from pipeline.tracking.process import give_way, quiet, repeat

ORDER = "mlflow.json"
EVERY = 20.0  # seconds between two passes
STATUS = {"running": "RUNNING", "finished": "FINISHED", "early": "FINISHED", "failed": "FAILED"}


@contextlib.contextmanager
def mirrored(folder: Path, experiment: str, run: str, fingerprint: str, settings: Mapping[str, Any], enabled: bool) -> Iterator[None]:
    """Mirror the search in `folder` while the block runs, and once more at its end; nothing that MLflow does reaches the block."""
    attempt = Attempt(
        experiment=experiment,
        name=f"search {run}",
        seed=0,
        fingerprint=fingerprint,
        settings=settings,
        record=str(folder / TABLE),
        started=time.time(),
    )
    if not (enabled and installed()):
        yield
        return
    process, status = None, "KILLED"
    with excused(str(folder)):
        attempt = replace(attempt, tags=origin("python -m stages.tune"))
        files.write_json(folder / ORDER, asdict(attempt))
        process = start("pipeline.search.tracking", str(folder / ORDER), str(EVERY))
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if process is not None:
            with excused(str(folder)):
                files.write_json(folder / ORDER, asdict(replace(attempt, status=status)))
            finish(process, f"{folder} is sent when its search is next run")


@dataclass
class SearchCopy:
    """What runs in that process: MLflow's copy of the search that `file` names, and which trials it has as they are."""

    file: Path
    has: dict[int, tuple[str, int]] = field(default_factory=dict)  # state and steps by the trial's number

    def send(self) -> None:
        """One pass."""
        attempt, folder = read_attempt(self.file), self.file.parent
        parent = Copy(attempt)
        parent.send(attempt, [])
        for outcome in Trials(folder).all:
            if self.has.get(outcome.number) != (outcome.state, outcome.steps):
                self.send_trial(attempt, parent.id, outcome)
                self.has[outcome.number] = outcome.state, outcome.steps
        if attempt.status != "RUNNING":
            found = [folder / TABLE, folder / BEST, *sorted((folder / "pictures").glob("*.png"))]
            parent.send_files([path for path in found if path.is_file()])

    def send_trial(self, search: Attempt, parent: str, outcome: Outcome) -> None:
        """A trial's run, nested in the search's."""
        folder = self.file.parent
        own = {"mlflow.parentRunId": parent, "trial": str(outcome.number + 1), "state": outcome.state, "reason": outcome.reason or ""}
        trial = replace(
            search,
            name=f"{search.name} trial {outcome.number + 1}",
            fingerprint=f"{search.fingerprint}-{place(folder, outcome.values).name}",
            settings={path: value if isinstance(value, str) else json.dumps(value) for path, value in outcome.values.items()},
            tags={**search.tags, **own},
            status=STATUS[outcome.state],
        )
        Copy(trial).send(trial, [{"step": steps, "miou": miou} for steps, miou in outcome.scores])


def main(file: Path, every: float) -> None:
    """Mirror the search whose order is in `file` every so many seconds until the input ends, and once after that."""
    with quiet():
        give_way()
        held = SearchCopy(file)
        repeat(held.send, every, f"the search goes on, its trials stay in {file.parent}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
