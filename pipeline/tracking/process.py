"""The process that talks to MLflow for pipeline/tracking/mirror.py.

python -m pipeline.tracking.process runs/fcn/seed-0/mlflow.json        sends a run's record again, by hand
"""

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.ground import lifeline
from pipeline.tracking.attempt import ATTEMPT, Attempt, address, read_attempt, reason, shown
from pipeline.tracking.copy import Copy

NICE = 10  # beside a training on two cores, importing MLflow at the usual priority halves the speed of its first steps


def follow(file: Path, every: float) -> None:
    """Mirror the attempt in `file` every so many seconds until the input ends, and once after that."""
    held: list[Copy] = []  # what MLflow has; after a failure it is asked again

    def once() -> None:
        attempt = read_attempt(file)
        copy = held.pop() if held else Copy(attempt)
        copy.send(attempt)
        held.append(copy)

    repeat(once, every, f"the training goes on, its record stays in {file.parent}")


def repeat(once: Callable[[], None], every: float, consequence: str) -> None:
    """Call `once` every so many seconds until the input ends, and once after that; less than 0 means now and never again."""
    warned, ended = False, False
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], 0)[0])  # asked before the pass, so that the last pass sees everything
        try:
            once()
            warned = False
        except Exception as error:
            if not warned:
                complain(consequence, error)
            warned = True
        ended = ended or every < 0
        if not ended:
            select.select([sys.stdin], [], [], every)


def complain(consequence: str, error: Exception) -> None:
    """One warning; our parent, which may have to kill us, learns from the output that it was given."""
    print(f"warning: MLflow at {shown(address())} is away or busy ({reason(error)}): {consequence}", file=sys.__stderr__, flush=True)
    print("warned", file=sys.__stdout__, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing that MLflow prints reach the training's terminal."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def give_way() -> None:
    """End with the work that this process stands beside, and take its processors last."""
    lifeline.die_with_parent()
    os.nice(NICE)


def main(arguments: list[str]) -> None:
    """`follow FILE SECONDS`, `results` (the order on the input), or files of attempts to send once more."""
    with quiet():
        if arguments[0] == "follow":
            give_way()
            follow(Path(arguments[1]), float(arguments[2]))
        elif arguments[0] == "results":
            lifeline.die_with_parent()
            order = json.load(sys.stdin)
            try:
                send_evaluation(order)
            except Exception as error:
                complain(f"results/{order['results']['evaluation']}.json stands, the next evaluation sends it", error)
        else:
            for file in arguments:
                follow(Path(file), -1)


def send_evaluation(order: Mapping[str, Any]) -> None:
    """What `mirror_results` ordered: the records first, where they belong to these weights, then the numbers.

    The pictures are of the first seed; what is a mean over several seeds is no number of one.
    """
    results = order["results"]
    folder = Path(order["pictures"]) if order["pictures"] else None
    pictures = [] if folder is None else [*sorted(folder.glob("*.png")), *folder.parent.glob("grid.png")]
    for values in results["per_seed"]:
        seed, fingerprint = values["seed"], order["fingerprints"][str(values["seed"])]
        attempt = Attempt(experiment=order["experiment"], name=results["run"], seed=seed, fingerprint=fingerprint, status="FINISHED")
        file = Path("runs") / results["run"] / f"seed-{seed}" / ATTEMPT
        with contextlib.suppress(OSError, ValueError, TypeError):
            if (recorded := read_attempt(file)).fingerprint == fingerprint and recorded.experiment == attempt.experiment:
                attempt = recorded
        copy = Copy(attempt)
        copy.send(attempt)
        alone = len(results["per_seed"]) == 1
        shared = {key: results[key] for key in ("images", *(["adjacent_class_weight_cosine"] if alone else [])) if key in results}
        numbers = {key: value for key, value in values.items() if key != "seed"} | shared | {"cost": cost_of(results, seed)}
        copy.send_results(results["evaluation"], numbers, pictures if values is results["per_seed"][0] else [])


def cost_of(results: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a seed costs: its own numbers where there are several, and those that all share."""
    shared = {key: value for key, value in results.get("cost", {}).items() if key != "per_seed"}
    own = next((each for each in results.get("cost", {}).get("per_seed", []) if each["seed"] == seed), {})
    return shared | {key: value for key, value in own.items() if key != "seed"}


if __name__ == "__main__":
    main(sys.argv[1:])
