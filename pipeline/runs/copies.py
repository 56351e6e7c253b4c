"""Copies of checkpoints on storage that outlives this machine's disk: a folder, or an fsspec address such as s3://bucket/path.

    <address>/<run>/<fingerprint>/seed-<s>/step-<n>.pt      a checkpoint
    <address>/<run>/<fingerprint>/seed-<s>/step-<n>.json    its SHA-256, written last: what has none, or another, is no copy

A thread of rank 0 writes them, so that a training never waits for storage that is slow or away. Of the checkpoints that are saved
while one is on its way only the newest is sent, which also makes up for one that failed.
"""

import contextlib
import functools
import hashlib
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.runs.fingerprint import fingerprint
from pipeline.settings.schema import Config

PATIENCE = 60.0  # seconds that a training which ends waits for the copy on its way
FLAT = ("s3", "s3a", "gs", "gcs", "az", "abfs")  # they have no folders to make: their clients would make a bucket instead
BLOCK = 16 << 20  # bytes in memory at a time
REMEDY = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def located(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it; UserError where there is none for it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError:
        kind = address.partition("://")[0]
        package = REMEDY.get(kind, "its client")
        raise UserError(f"{address}: fsspec needs {package} for {kind}://: uv pip install {package}=={fsspec.__version__}") from None
    except Exception as error:  # each kind of storage has errors of its own
        raise UserError(f"{address}: {short(error)}") from None


def refuse_unwritable(address: str, key: str) -> None:
    """Raise UserError, which names the profile's `key`, where nothing can be written to an address."""
    try:
        system, path = located(address)
        place = f"{path}/.writable-{uuid.uuid4().hex[:8]}"
        make_folder(system, path)
        system.pipe_file(place, b"")
        system.rm_file(place)
    except Exception as error:
        raise UserError(f"cannot write {key} {address}: {short(error).removeprefix(f'{address}: ')}") from None


def make_folder(system: Any, path: str) -> None:
    """Make a folder where the storage has such."""
    kinds = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    if not set(kinds) & set(FLAT):
        system.makedirs(path, exist_ok=True)


def short(error: Exception) -> str:
    """An error as a part of one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


@contextlib.contextmanager
def copying(config: Config, *, active: bool) -> Iterator["Copies | None"]:
    """The copies of a config's seed, where its profile wants them; only one rank is `active`.

    At the end of a training, also of one that was asked to stop, the copy on its way gets a moment; at a fault it gets none.
    """
    address = config.launch.copies
    if address is None or not active:
        yield None
        return
    copies = Copies(f"{address.rstrip('/')}/{config.name}/{fingerprint(config)}/seed-{config.seed}", config.launch.keep)
    try:
        yield copies
    except UserError:
        copies.finish(PATIENCE)
        raise
    copies.finish(PATIENCE)


class Copies:
    """The copies of one seed at an address, the last `keep` of them."""

    def __init__(self, address: str, keep: int) -> None:
        self.address, self.keep = address, keep
        self.waiting: tuple[int, Path] | None = None  # the newest checkpoint that is not on its way
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    @functools.cached_property
    def place(self) -> tuple[Any, str]:
        """The file system and the folder on it."""
        return located(self.address)

    def send(self, step: int, path: Path) -> None:
        """Copy a checkpoint as soon as the one on its way is there; returns at once."""
        with self.changed:
            self.waiting = step, path
            if self.thread is None:
                self.thread = threading.Thread(target=self.work, name="copies", daemon=True)
                self.thread.start()

    def finish(self, seconds: float) -> None:
        """Wait so long for what is on its way."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.thread is None, timeout=seconds):
                warn(f"the copy of a checkpoint at {self.address} takes longer than {seconds:.0f} s and is left; earlier ones stay")

    def work(self) -> None:
        """The thread: copy until nothing waits. What fails is a warning."""
        while True:
            with self.changed:
                if self.waiting is None:
                    self.thread = None
                    self.changed.notify_all()
                    return
                (step, path), self.waiting = self.waiting, None
            try:
                self.copy(step, path)
            except Exception as error:
                if path.exists():  # else a later one has taken its place on the disk, and waits
                    warn(f"{path} could not be copied to {self.address} ({short(error)}); the next one is tried")

    def copy(self, step: int, path: Path) -> None:
        """Write the copy of a step, then its digest, and delete all but the last."""
        system, folder = self.place
        data, digest = (f"{folder}/step-{step}{suffix}" for suffix in (".pt", ".json"))
        with path.open("rb") as source:
            make_folder(system, folder)
            if system.exists(digest):
                system.rm_file(digest)
            with system.open(data, "wb", block_size=BLOCK) as goal:
                sha256 = stream(source, goal)
        system.pipe_file(digest, json.dumps({"sha256": sha256}).encode())
        found = self.steps()
        kept = [number for number in found if number <= step][-self.keep :]
        for name in self.names():
            if (number := step_of(name)) is not None and number not in kept:
                system.rm_file(f"{folder}/{name}")

    def names(self) -> list[str]:
        """The files at the address, digests first."""
        system, folder = self.place
        system.invalidate_cache()
        try:
            found = system.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def steps(self) -> list[int]:
        """The steps that have a digest, ascending."""
        return sorted(number for name in self.names() if name.endswith(".json") and (number := step_of(name)) is not None)

    def fetch(self, folder: Path, above: int | None) -> bool:
        """Bring the newest whole copy to `folder` if it is `above` the step that is there (None: there is none); whether it did.

        Raises UserError where the storage cannot be read and nothing is there: to start afresh would cost the work of days.
        """
        try:
            found = [step for step in self.steps() if above is None or step > above]
        except Exception as error:
            if above is None:
                raise UserError(f"cannot read the checkpoints at {self.address}: {short(error)}; run it again when it answers") from None
            warn(f"cannot read the checkpoints at {self.address} ({short(error)}): going on from step {above}")
            return False
        for step in reversed(found):
            try:
                self.bring(step, folder / f"step-{step}.pt")
                warn(f"step {step} comes from {self.address}")
                return True
            except UserError:  # of our own disk
                raise
            except Exception as error:
                warn(f"the copy of step {step} at {self.address} is passed over ({short(error)})")
        return False

    def bring(self, step: int, goal: Path) -> None:
        """Copy one step to the disk, whole or not at all."""
        system, place = self.place
        known = json.loads(system.cat_file(f"{place}/step-{step}.json"))["sha256"]
        with system.open(f"{place}/step-{step}.pt", "rb", block_size=BLOCK) as source, files.replacing(goal) as file:
            if stream(source, file) != known:
                raise ValueError("it is not whole")


def step_of(name: str) -> int | None:
    """The step of a checkpoint's or digest's file; None for another file."""
    number = name.removeprefix("step-").partition(".")[0]
    return int(number) if name.startswith("step-") and number.isdigit() else None


def stream(source: IO[bytes], goal: IO[bytes]) -> str:
    """Copy bytes; returns their SHA-256."""
    digest = hashlib.sha256()
    for block in blocks(source):
        digest.update(block)
        goal.write(block)
    return digest.hexdigest()


def blocks(source: IO[bytes]) -> Iterator[bytes]:
    """The content of a file; what its storage refuses is no OSError, which would be taken for one of the disk that is written."""
    while True:
        try:
            block = source.read(BLOCK)
        except Exception as error:
            raise ValueError(short(error)) from None
        if not block:
            return
        yield block
