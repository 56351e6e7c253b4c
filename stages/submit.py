"""Send everything that is stale to the cluster's queue at once: `uv run python -m stages.submit`.

`uv run dvc repro` trains one run after the other, so a cluster would idle. This brings the inputs up to date, and sends all seeds of
all methods, and of the finetunes whose parent is finished, as one job array on one copy of the code. `uv run dvc repro` then waits for
each job and collects what it made.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.runs import fingerprint as fingerprints
from pipeline.runs import folders
from pipeline.settings import config
from pipeline.settings.schema import Config, Params
from stages.check import check, check_prepared
from stages.command import run

BUSY = re.compile(r"is busy|Unable to acquire lock|blocked by", re.IGNORECASE)
HOLDER = re.compile(r"\(PID (\d+)\)")
AGAIN = 5.0  # seconds between two tries


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.submit", description="Send all that is stale to the cluster at once.")
    parser.parse_args()
    params = config.load()
    check(params)

    from cluster import QUEUES, submit
    from pipeline.runs.trainer import train

    if params.launch.backend not in QUEUES:
        way = f"LAUNCH={QUEUES[0]} uv run python -m stages.submit"
        raise UserError(f"launch profile {params.launch.name} has no queue to send to: {way}")
    bring_up_to_date(params)
    check_prepared(params)
    rows, stale = plan(params)
    for seed in stale:
        folders.adopt_or_warn(seed)
    stale = [seed for seed in stale if not folders.is_finished(seed)]
    refused = []
    for seed, (job, new, refusal) in zip(stale, submit(train, stale), strict=True):
        rows[seed.name, seed.seed] = f"{'NOT sent' if refusal else 'sent' if new else 'runs already'}: Slurm job {job}"
        refused += [refusal] if refusal else []
    print(table(rows))
    print("`uv run dvc repro` waits for the jobs and collects what they make")
    if refused:
        more = f" (and {len(refused) - 1} more)" if refused[1:] else ""
        raise UserError(f"{refused[0]}{more}")


def bring_up_to_date(params: Params) -> None:
    """Let DVC make what the runs read; while another DVC is at work, wait. Without a DVC repository what is there is taken."""
    if not Path(".dvc").is_dir():
        return
    sets = sorted({entry.superpixels for entry in (*params.methods.values(), *params.finetunes.values())})
    command = [sys.executable, "-m", "dvc", "repro", "prepare", *(f"superpixels@{name}" for name in sets)]
    waiting = False
    while True:
        status, said = shown(command)
        if status == 0:
            return
        if not BUSY.search(said):
            raise UserError(f"the inputs could not be brought up to date: `{' '.join(['uv run dvc', *command[3:]])}` says why")
        if not waiting:
            holder = HOLDER.search(said)
            who = f" (process {holder[1]})" if holder else ""
            print(f"another dvc is at work here{who}: waiting for it", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(AGAIN)


def shown(command: list[str]) -> tuple[int, str]:
    """Run a command and pass on what it says; returns its status and all of that. That a lock is held is not passed on."""
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if not BUSY.search("".join(said)):
                print(line, end="", file=sys.stderr, flush=True)
    return process.returncode, "".join(said)


def plan(params: Params) -> tuple[dict[tuple[str, int], str], list[Config]]:
    """What stands for each run and seed in the table, and the seeds to be trained."""
    rows: dict[tuple[str, int], str] = {}
    stale: list[Config] = []
    everything: Mapping[str, Config] = {**params.methods, **params.finetunes}
    for name, chosen in everything.items():
        parent = unfinished_parent(chosen, everything)
        for number in chosen.train.seeds:
            if parent is not None:
                rows[name, number] = f"waits for its parent {parent}: send again when that is finished"
                continue
            seed = fingerprints.stamp(config.with_seed(chosen, number))
            rows[name, number] = "finished" if folders.is_finished(seed) else "stale"
            stale += [] if folders.is_finished(seed) else [seed]
    return rows, stale


def unfinished_parent(chosen: Config, everything: Mapping[str, Config]) -> str | None:
    """The run that a finetune starts from, where that is one of params.yaml and not finished; a finished one is published."""
    if chosen.finetune is None:
        return None
    top, *rest = chosen.finetune.source.parts
    name = rest[0] if top == "runs" and rest[1:2] == ["weights"] else None
    if name is None or name not in everything:
        return None
    if unfinished_parent(everything[name], everything) is not None:
        return name
    seeds = [fingerprints.stamp(config.with_seed(everything[name], number)) for number in everything[name].train.seeds]
    if not all(folders.is_finished(seed) for seed in seeds):
        return name
    if any(published(seed) != files.sha256(folders.finished_folder(seed) / f"seed-{seed.seed}.pt") for seed in seeds):
        folders.collect(seeds[0], seeds)
    return None


def published(seed: Config) -> str | None:
    """The SHA-256 of a seed's weights as the DVC out has them."""
    file = seed.folder / "weights" / f"seed-{seed.seed}.pt"
    return files.sha256(file) if file.is_file() else None


def table(rows: Mapping[tuple[str, int], str]) -> str:
    """The plan for people."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  seed {seed:<4}  {state}" for (name, seed), state in rows.items())


if __name__ == "__main__":
    raise SystemExit(run(main))
