"""Checksums of large files, remembered: 11 GB are not read again while size, times and inode say that nothing changed."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from pipeline.ground import files
from pipeline.ground.progress import track

CACHE = Path("data/archives/digests.json")  # may be deleted at any time
MEGABYTE = 10**6
SHOWN_FROM = 1000 * MEGABYTE  # smaller files are hashed within a second or two: no progress
BLOCK = 1 << 20


def digests(path: Path, algorithms: Collection[str] = ("sha256",)) -> dict[str, str]:
    """The hexadecimal checksums of a file by algorithm (`sha256`, `sha1`, `md5`)."""
    known = remembered(path)
    if known.keys() >= set(algorithms):
        return {name: known[name] for name in algorithms}
    found = compute(path, algorithms)
    remember(path, known | found)
    return found


def compute(path: Path, algorithms: Collection[str]) -> dict[str, str]:
    """Read a file once for all `algorithms`."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    size = path.stat().st_size
    with path.open("rb") as file:
        steps = megabytes(file, hashes.values())
        for _ in track(steps, size // MEGABYTE, f"{path.name}: checksum", unit="MB") if size >= SHOWN_FROM else steps:
            pass
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def megabytes(file: IO[bytes], hashes: Collection["hashlib._Hash"]) -> Iterator[int]:
    """Feed a file to `hashes`, yielding the count of each whole megabyte read."""
    read = counted = 0
    while block := file.read(BLOCK):
        for digest in hashes:
            digest.update(block)
        read += len(block)
        while counted < read // MEGABYTE:
            counted += 1
            yield counted


def remembered(path: Path) -> dict[str, str]:
    """What is known about the file as it lies there now; a missing or damaged memory knows nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads(CACHE.read_bytes())[str(path.resolve())]
        if entry["state"] == state(path):
            return dict(entry["digests"])
    return {}


def remember(path: Path, values: dict[str, str]) -> None:
    """Keep a file's checksums for as long as it does not change."""
    with files.locked(CACHE.with_suffix(".lock"), str(CACHE), wait=True):
        try:
            entries = dict(json.loads(CACHE.read_bytes()))
        except (OSError, ValueError, TypeError):
            entries = {}
        entries[str(path.resolve())] = {"state": state(path), "digests": values}
        files.write_json(CACHE, entries)


def state(path: Path) -> list[int]:
    """What changes when a file is written or replaced, even where its size and its time of modification are kept."""
    entry = path.stat()
    return [entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino]
