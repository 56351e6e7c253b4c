"""Reads what a project's trainings leave, and waits for it."""

import json
import time

from makers.project import Project

WAIT = 120.0


def wait_for(condition, what: str) -> None:
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.01)


def weights(project: Project, name: str, seed: int = 0) -> bytes:
    return (project.folder / "runs" / name / "weights" / f"seed-{seed}.pt").read_bytes()


def checkpoints(project: Project, name: str) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in project.folder.glob(f"runs/{name}/checkpoints/*/seed-0/step-*.pt"))


def record(project: Project, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (project.folder / f"runs/{name}/seed-0/metrics.jsonl").read_text().splitlines()]


def fresh(project: Project) -> None:
    for path in project.folder.glob("runs/*"):
        path.rename(project.folder / f"{path.name}.before")
