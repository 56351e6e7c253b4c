"""From a dataset's files to the store: every pair is opened once, checked, and kept under the hash of its content.

A checked pair is recognised by path, size and time of its two files, so that preparing again costs next to nothing and a
killed run goes on where it was:

    <store>/checked/<what a check depends on>.json      one entry per pair
    <store>/generated/<dataset>/                        files of datasets that draw their own
"""

import contextlib
import hashlib
import inspect
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import images
from pipeline.data.prepared import Pair, Prepared
from pipeline.datasets import IGNORED, Dataset, Source, refuse
from pipeline.ground import files, store
from pipeline.ground.errors import BusyError, UserError
from pipeline.ground.workers import mapped
from pipeline.labels import masks

SAVE_SECONDS = 2.0  # of work that a kill can lose; more where saving takes long, of which it is to be a twentieth


@dataclass(frozen=True)
class Checked:
    """A pair in the store. `state`: its two source files' sizes and times; `counts`: pixels by class id, as JSON keys."""

    pair: Pair
    state: tuple[int, ...]
    stored: tuple[int, int]  # bytes of the image and the label in the store
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Check:
    """The work of one process: check a pair and store it."""

    dataset: Dataset

    def __call__(self, source: Source) -> Checked | str:
        """The stored pair, or why it is bad; a UserError when the store cannot be written."""
        try:
            state = state_of(source)
            content = source.image.read_bytes()
            label_HW = opened(self.dataset, source)
            if state != state_of(source):
                return f"{source.image}: was changed while it was being read: run it again"
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or source.image}: cannot be read ({error.strerror or error})"
        image = f"{hashlib.sha256(content).hexdigest()}{source.image.suffix.lower()}"
        keep(source.image, content, store.path("images", image))
        buffer = io.BytesIO()
        Image.fromarray(label_HW).save(buffer, "PNG")
        label = f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.png"
        put(buffer.getvalue(), store.path("labels", label))
        counts = {str(place): int(count) for place, count in enumerate(np.bincount(label_HW.ravel())) if count}
        height, width = label_HW.shape
        return Checked(Pair(source.name, image, label, height, width), state, (len(content), buffer.tell()), counts)


def keep(source: Path, content: bytes, goal: Path) -> None:
    """Put a file into the store: a hard link to our own files, which nobody edits, else a copy."""
    if not source.resolve().is_relative_to(store.root().resolve()):
        put(content, goal)
        return
    temporary = goal.with_name(f".{goal.name}.{os.getpid()}.tmp")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        if goal.exists() and goal.samefile(source):
            return
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        temporary.replace(goal)
    except OSError:  # a file system without links, or with too many of them
        put(content, goal)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def put(content: bytes, goal: Path) -> None:
    """Put a file into the store, where an equal one may be; it is not flushed to the disk before `save`."""
    with contextlib.suppress(FileNotFoundError):
        if goal.stat().st_size == len(content) and goal.read_bytes() == content:
            return
    files.write_bytes(goal, content, flushed=False)


def opened(dataset: Dataset, source: Source) -> np.ndarray:
    """The label map of a pair of which everything was looked at; a UserError names the bad file and the reason."""
    try:
        image = images.rgb(source.image)
    except UserError as error:
        raise UserError(f"{source.image}: {error}") from None
    try:
        label_HW = dataset.label(source.label)
    except UserError as error:
        raise UserError(f"{source.label}: {error}") from None
    height, width = label_HW.shape
    if image.size != (width, height):
        raise UserError(f"{source.label}: is {width} x {height}, its image {source.image.name} {image.width} x {image.height} (upright)")
    strange = np.unique(label_HW[(label_HW >= len(dataset.classes)) & (label_HW != IGNORED)])
    if len(strange):
        raise UserError(f"{source.label}: has the ids {', '.join(map(str, strange[:5]))}, beyond the {len(dataset.classes)} classes")
    return label_HW


def state_of(source: Source) -> tuple[int, ...]:
    """What changes when a file of the pair does: sizes, and times in nanoseconds."""
    result = []
    for path in (source.image, source.label):
        try:
            status = path.stat()
        except FileNotFoundError:
            raise UserError(f"{path}: does not exist") from None
        result += [status.st_size, status.st_mtime_ns]
    return tuple(result)


def prepare(dataset: Dataset, name: str, *folders: Path) -> tuple[Prepared, dict[str, Counter[int]]]:
    """Check and store every pair of `dataset`, read from `folders` (see Dataset.sources).

    Returns what to publish, and each split's pixels by class id.

    All bad files are printed with their reasons before the UserError.
    """
    with alone():
        sources = dataset.sources(*folders)
        refuse_clashes(dataset, sources)
        cache = store.root() / "checked" / f"{identity(dataset, name)}.json"
        known = recall(cache)
        done = {source: entry for source in sources if (entry := known.get(key(source))) and is_there(entry, source)}
        faults = check_rest(dataset, sources, done, cache)
    if faults:
        listed = [faults[source] for source in sources if source in faults]
        refuse(listed, f"{len(listed)} of {len(sources)} pairs are bad (named above): mend or remove them; nothing was published")
    splits = {split: tuple(done[source].pair for source in sources if source.split == split) for split in dataset.splits}
    pixels: dict[str, Counter[int]] = {split: Counter() for split in dataset.splits}
    for source in sources:
        pixels[source.split].update({int(place): count for place, count in done[source].counts.items()})
    return Prepared(name, tuple(dataset.classes), tuple(dataset.palette), splits), pixels


def check_rest(dataset: Dataset, sources: Sequence[Source], done: dict[Source, Checked], cache: Path) -> dict[Source, str]:
    """Check what is not `done`, add it there and to the cache file; returns what is bad, and why."""
    rest = [source for source in sources if source not in done]
    faults: dict[Source, str] = {}
    fresh: list[Checked] = []
    saved, pause = time.monotonic(), SAVE_SECONDS
    try:
        for source, result in mapped(Check(dataset), rest, "checking pairs", done=len(done), unit="pairs"):
            if isinstance(result, str):
                faults[source] = result
                continue
            done[source] = result
            fresh.append(result)
            if (began := time.monotonic()) - saved > pause:
                save(cache, done, fresh)
                saved = time.monotonic()
                pause = SAVE_SECONDS * max(1.0, 10 * (saved - began))
    finally:
        if rest:
            save(cache, done, fresh)
    return faults


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Be the only process that prepares into this store; wait for another one, and say so."""
    lock = store.root() / "prepare.lock"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.locked(lock, str(store.root())))
        except BusyError as error:
            print(f"{error}; waiting for it to end", file=sys.stderr, flush=True)
            held.enter_context(files.locked(lock, str(store.root()), wait=True))
        yield


def refuse_clashes(dataset: Dataset, sources: Sequence[Source]) -> None:
    """Refuse a split without pairs, and a name that is there twice in one."""
    for split in dataset.splits:
        if not any(source.split == split for source in sources):
            raise UserError(f"split {split} has no pairs: add images to it, or check data.root and the dataset's options in params.yaml")
    first: dict[tuple[str, str], Source] = {}
    faults = []
    for source in sources:
        if (earlier := first.setdefault((source.split, source.name), source)) is not source:
            faults.append(f"{source.image}: split {source.split} has the name {source.name} already, from {earlier.image}")
    if faults:
        refuse(faults, f"{len(faults)} names (above) are there twice in one split: rename or remove these files")


def identity(dataset: Dataset, name: str) -> str:
    """A hash of what a check depends on besides the pair's files: the dataset's code and options, and how images are read."""
    code = [Path(file).read_bytes() for file in (inspect.getfile(type(dataset)), masks.__file__, images.__file__, __file__)]
    options = repr([name, dataset.classes, sorted(vars(dataset).items())])
    return hashlib.sha256(b"\0".join([*code, options.encode()])).hexdigest()[:16]


def key(source: Source) -> str:
    """How the cache names a pair."""
    return "|".join((source.name, str(source.image.absolute()), str(source.label.absolute())))


def is_there(entry: Checked, source: Source) -> bool:
    """Whether a pair's files are those that were checked, and the store still has them."""
    try:
        stored = (store.path("images", entry.pair.image).stat().st_size, store.path("labels", entry.pair.label).stat().st_size)
        return stored == entry.stored and state_of(source) == entry.state
    except (UserError, FileNotFoundError):
        return False


def recall(cache: Path) -> dict[str, Checked]:
    """What earlier runs checked; a damaged cache only costs time."""
    try:
        raw = json.loads(cache.read_bytes())
        return {key: Checked(Pair(**own["pair"]), tuple(own["state"]), tuple(own["stored"]), own["counts"]) for key, own in raw.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def save(cache: Path, done: Mapping[Source, Checked], fresh: list[Checked]) -> None:
    """Flush the `fresh` pairs' files to the disk, all at once for speed, and write the cache, which may then name them."""
    paths = [store.path(kind, name) for entry in fresh for kind, name in (("images", entry.pair.image), ("labels", entry.pair.label))]
    try:
        files.flush(paths)
    except UserError:
        for path in paths:  # what the disk refused can look whole until it is read again
            path.unlink(missing_ok=True)
        raise
    fresh.clear()
    entries = {key(source): {**vars(entry), "pair": vars(entry.pair)} for source, entry in done.items()}
    files.write_bytes(cache, json.dumps(entries).encode())  # without indents: 22,000 entries in a tenth of the time
