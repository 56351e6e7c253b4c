"""What a run leaves on the disk, and how a finished one is found again.

    runs/<name>/finished/<fingerprint>/       settings.json, and seed-<s>.pt, .json, .csv as they were published
    runs/<name>/checkpoints/<fingerprint>/    settings.json, and seed-<s>/step-<n>.pt
    runs/<name>/weights/                      the DVC out: copies of the finished seeds that params.yaml asks for
    runs/<name>/seed-<s>/                     the latest attempt: metrics.jsonl, log.txt, job.json, lock

Of these only `weights` is a DVC out, so that A, then B, then A finds A, and deleting checkpoints retrains nothing.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ground import files
from pipeline.ground.progress import warn
from pipeline.runs import fingerprint as fingerprints
from pipeline.settings.schema import Config

SUFFIXES = (".pt", ".json", ".csv")


def finished_folder(config: Config) -> Path:
    """Where what this config published is kept."""
    return config.folder / "finished" / fingerprints.fingerprint(config)


def checkpoint_folder(config: Config) -> Path:
    """Where this config's seed keeps its checkpoints."""
    return config.folder / "checkpoints" / fingerprints.fingerprint(config) / f"seed-{config.seed}"


def attempt_folder(config: Config) -> Path:
    """The latest attempt of this seed, whatever its settings: nobody depends on it."""
    return config.folder / f"seed-{config.seed}"


def is_finished(config: Config) -> bool:
    """Whether this seed of exactly these settings, data and code was published before, and is still whole."""
    return bool(published(finished_folder(config), config.seed))


def published(folder: Path, seed: int) -> list[str]:
    """The names of a finished seed's files; none where one of them is absent or visibly damaged."""
    names = [f"seed-{seed}{suffix}" for suffix in SUFFIXES]
    try:
        json.loads((folder / names[1]).read_bytes())
        whole = zipfile.is_zipfile(folder / names[0]) and (folder / names[2]).is_file()
    except (OSError, ValueError):
        whole = False
    return names if whole else []


def resumable(folder: Path, seed: int) -> list[str]:
    """The names of a seed's checkpoints that are not visibly damaged, relative to `folder`."""
    return [f"seed-{seed}/{path.name}" for path in sorted(folder.glob(f"seed-{seed}/step-*.pt")) if zipfile.is_zipfile(path)]


def write_settings(folder: Path, config: Config, **extra: Any) -> None:
    """Put all ingredients of the fingerprint beside what they led to."""
    path = folder / "settings.json"
    if not path.is_file():
        files.write_json(path, {"fingerprint": fingerprints.fingerprint(config), "settings": fingerprints.settings(config), **extra})


def earlier(config: Config) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of other attempts of this run and seed with their settings, the newest first."""
    found = [*config.folder.glob("finished/*/settings.json"), *config.folder.glob("checkpoints/*/settings.json")]
    mine = fingerprints.fingerprint(config)
    for path in sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True):
        try:
            settings = json.loads(path.read_bytes())["settings"]
        except (ValueError, KeyError, OSError):
            continue
        if path.parent.name != mine and settings.get("seed") == config.seed:
            yield path.parent, settings


def adopt_or_warn(config: Config) -> None:
    """Before a fresh start: with RESUME_ACROSS_CODE take over an attempt whose code alone differs; else say what differs."""
    if is_finished(config):
        return
    mine = finished_folder(config) / f"seed-{config.seed}.pt"
    if mine.is_file():
        warn(f"{mine} or a file beside it is missing or damaged: this seed is trained again from its last checkpoint")
    if resumable(checkpoint_folder(config).parent, config.seed):
        return
    now = fingerprints.settings(config)
    attempts = list(earlier(config))
    if os.environ.get("RESUME_ACROSS_CODE") == "1":
        for folder, settings in attempts:
            if fingerprints.same_but_code(settings, now) and adopt(config, folder, settings):
                return
    if attempts:
        changed = fingerprints.differences(attempts[0][1], now)
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        shown = "; ".join(changed[:8]) + more
        warn(f"{config.name}, seed {config.seed}: the newest attempt had other settings, so this one starts afresh: {shown}")


def adopt(config: Config, folder: Path, settings: Mapping[str, Any]) -> bool:
    """Copy another attempt's files under this config's fingerprint, and record whose code they came from; False if it has none."""
    finished = folder.parent.name == "finished"
    goal = finished_folder(config) if finished else checkpoint_folder(config).parent
    names = published(folder, config.seed) if finished else resumable(folder, config.seed)
    if not names:
        return False
    for name in names:
        copy(folder / name, goal / name)
    write_settings(goal, config, adopted={"fingerprint": folder.name, "code": settings["inputs"]["code"]})
    changed = "; ".join(fingerprints.differences(settings, fingerprints.settings(config)))
    warn(f"{config.name}, seed {config.seed}: RESUME_ACROSS_CODE takes over {folder}; changed: {changed}")
    return True


def copy(source: Path, goal: Path) -> None:
    """Copy a file, whole or not at all. No hard link: an in-place edit of one would change the other."""
    with source.open("rb") as reader, files.replacing(goal) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def collect(config: Config, seeds: Sequence[Config]) -> Path:
    """Publish the finished seeds as runs/<name>/weights; the folder appears whole, and of two that collect one waits."""
    goal = config.folder / "weights"
    fresh, old = config.folder / ".weights.new", config.folder / ".weights.old"
    with files.locked(config.folder / ".weights.lock", str(goal), wait=True):
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
        for seed in seeds:
            for suffix in SUFFIXES:
                name = f"seed-{seed.seed}{suffix}"
                copy(finished_folder(seed) / name, fresh / name)
        if goal.exists():
            goal.rename(old)
        fresh.rename(goal)
        shutil.rmtree(old, ignore_errors=True)
    return goal
