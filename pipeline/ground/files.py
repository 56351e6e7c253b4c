"""Files that are either whole or absent, their hashes, and locks.

Published files are hard links into DVC's cache: writing one in place would corrupt the cache silently, so whatever a
stage writes goes to a temporary file beside its goal, is flushed to the disk and then renamed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from pipeline.ground.errors import BusyError, UserError, explained, refusal

FLUSHING = 16  # files at a time


@contextlib.contextmanager
def replacing(path: Path, *, flushed: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block ends well, and vanishes when it does not.

    Unless it is to be `flushed`, a power cut can empty it until `flush` is called, which is faster for many files at once.
    Raises UserError when the disk is full or the folder cannot be written, whatever the writer made of that.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with created(temporary, "wb", path) as file:
            yield file
            file.flush()
            if flushed:
                os.fsync(file.fileno())
        temporary.replace(path)
        if flushed:
            sync(path.parent)
    except Exception as error:
        if (cause := refusal(error)) is None:
            raise
        raise explained(cause, f"cannot write {path}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def created(path: Path, mode: str, goal: Path, buffering: int = -1) -> IO[bytes]:
    """Open a file whose folder need not be there; UserError, which names `goal`, where the system has no place for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode, buffering=buffering)
    except OSError as error:
        raise explained(error, f"cannot write {goal}") from error


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that a rename in it outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(paths: Iterable[Path]) -> None:
    """Flush files and the folders that they are in, so that they outlive a power cut; a UserError where the disk refuses."""
    chosen = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(FLUSHING) as pool:  # at once, so that the disk can take several in one go
        for group in (chosen, list(dict.fromkeys(path.parent for path in chosen))):
            for path, done in zip(group, [pool.submit(sync, path) for path in group], strict=True):
                try:
                    done.result()
                except OSError as error:
                    pool.shutdown(cancel_futures=True)
                    raise explained(error, f"cannot write {path}") from error


def write_bytes(path: Path, content: bytes, *, flushed: bool = True) -> None:
    """Write `content` to `path`, whole or not at all; `flushed`: see `replacing`."""
    with replacing(path, flushed=flushed) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys (equal values, equal bytes), whole or not at all."""
    write_bytes(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file; where it is absent or damaged, a UserError names it and says `remedy`."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {remedy}") from None
    except OSError as error:
        raise explained(error, f"cannot read {path}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; it ends with the process, however that ends.

    With `wait` the call blocks until the lock is free, otherwise a second holder gets a BusyError that names the first.
    `what` is the phrase for that message, such as "runs/fcn/seed-0". Raises UserError where the lock cannot be written.
    """
    with created(path, "a+b", path, buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            file.truncate(0)
            file.write(holder.encode())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise BusyError(f"{what} is already being written by {holder}") from None
        except OSError as error:
            raise explained(error, f"cannot lock {path}") from error
        yield
