"""Safe extraction of zip and tar archives into the store: whole or not at all, and nothing outside the folder.

Every entry is written by this file, not by the archive libraries: names that leave the folder, links that leave it, entries that
write through a link and names given twice are refused with the entry's name, as is in `containers` what is no file, folder or link.
A killed extraction leaves a folder of another name, which the next one removes.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from pipeline.download.containers import BLOCK, Entry, reading
from pipeline.ground import files, store
from pipeline.ground.digests import digests
from pipeline.ground.errors import UserError
from pipeline.ground.progress import track


def folder_of(sha256: str) -> Path:
    """Where the archive with this checksum is, or will be, extracted."""
    return store.root() / "extracted" / sha256[:16]


def extracted(archive: Path, sha256: str) -> Path:
    """The folder with the contents of `archive`, extracted once; the file must have the checksum `sha256`."""
    folder = folder_of(sha256)
    if folder.is_dir():
        refuse_losses(folder)
    else:
        if (now := digests(archive)["sha256"]) != sha256:
            change = f"SHA-256 {now[:16]}..., was {sha256[:16]}..."
            raise UserError(f"{archive} has changed since its download ({change}): run `uv run python -m stages.download`")
        extract(archive, folder)
    return folder


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar (.gz, .bz2, .xz: by content) archive into the new folder `folder`, whole or not at all."""
    try:
        with files.locked(folder.with_name(f".{folder.name}.lock"), str(folder), wait=True):
            if not folder.is_dir():  # else another process was faster
                extract_alone(archive, folder)
    except OSError as error:
        raise UserError(f"cannot extract {archive} to {folder}: {error.strerror or error}") from error


def extract_alone(archive: Path, folder: Path) -> None:
    """`extract` for the one process that holds the lock."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        with reading(archive) as (entries, number, size):
            refuse_small_disk(size, shutil.disk_usage(partial).free, folder, archive)
            unpack(track(entries, number, f"{archive.name}: extracting", unit="files"), partial, archive)
        os.sync()  # the rename must not outlive a power cut that the files do not
        files.write_json(record_of(folder), dict(zip(("files", "bytes"), held(partial), strict=True)))
        partial.replace(folder)
        files.sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def record_of(folder: Path) -> Path:
    """Where it is kept how much an extracted folder has."""
    return folder.with_name(f".{folder.name}.files")


def held(folder: Path) -> tuple[int, int]:
    """The number of files at any depth, and their bytes."""
    sizes = [os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names]
    return len(sizes), sum(sizes)


def refuse_losses(folder: Path) -> None:
    """Refuse an extracted folder that files, or parts of them, were taken from: a smaller dataset that nobody would notice."""
    if not record_of(folder).is_file():  # of an earlier version
        return
    record = files.read_json(record_of(folder), f"delete {folder} and run this again")
    for left, kind in zip(held(folder), ("files", "bytes"), strict=True):
        if left < (whole := int(record.get(kind, 0))):
            raise UserError(f"{folder} has {left} of the {whole} {kind} that were extracted: delete it and run this again")


def verify(archive: Path) -> None:
    """Read an archive to its end, writing nothing; a UserError says whether it is truncated, damaged or no archive."""
    with reading(archive) as (entries, _, _):
        for entry in entries:
            if entry.content is not None:
                with entry.content() as content:
                    while content.read(BLOCK):
                        pass


def unpack(entries: Iterator[Entry], folder: Path, archive: Path) -> None:
    """Write `entries` under `folder`: files as they come, then the links, so that nothing is written through one."""
    links: list[Entry] = []
    free, size = shutil.disk_usage(folder).free, 0
    for entry in entries:
        path = folder / safe_name(entry.name, archive)
        if entry.kind in ("symbolic", "hard"):
            links.append(entry)
            continue
        size += entry.size
        refuse_small_disk(size, free, folder, archive)
        with refusing_clashes(entry.name, archive):
            if entry.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
            else:
                write(entry, path)
    for entry in sorted(links, key=lambda link: link.kind):  # hard links first: no other link exists yet that they could name
        with refusing_clashes(entry.name, archive):
            link(entry, folder, archive)
    for entry in links:  # a later link can have turned an earlier one around
        refuse_outside(folder / safe_name(entry.name, archive), folder, entry.name, archive)


def refuse_small_disk(size: int, free: int, folder: Path, archive: Path) -> None:
    """Refuse to write `size` bytes where only `free` ones are."""
    if size > free:
        needs = f"more than the disk of {folder.parent} has free ({size / 1e6:,.1f} of {free / 1e6:,.1f} MB)"
        raise UserError(f"{archive} unpacks to {needs}: make room and run this again")


def write(entry: Entry, path: Path) -> None:
    """Write a file that must not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert entry.content is not None
    with entry.content() as content, path.open("xb") as file:
        shutil.copyfileobj(content, file, BLOCK)
        if file.tell() != entry.size:
            raise EOFError(f"{entry.name} has {file.tell()} of {entry.size} bytes")


def link(entry: Entry, folder: Path, archive: Path) -> None:
    """Make a link whose target lies in `folder`."""
    path = folder / safe_name(entry.name, archive)
    refuse_outside(path.parent, folder, entry.name, archive)
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind == "symbolic":
        path.symlink_to(entry.target)
        refuse_outside(path, folder, entry.name, archive)
        return
    target = folder / safe_name(entry.target, archive)
    if not target.is_file():
        raise UserError(f"{archive}: {entry.name} is a link to {entry.target}, which is no file in the archive: refused")
    path.hardlink_to(target)


@contextlib.contextmanager
def refusing_clashes(name: str, archive: Path) -> Iterator[None]:
    """Turn what the file system says about a name that is taken into a UserError."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{archive}: {name} is there twice, or is a file and a folder at once: refused") from None


def safe_name(name: str, archive: Path) -> PurePosixPath:
    """A member's path below the folder; a name that is absolute or leaves the folder is refused."""
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name:
        raise UserError(f"{archive}: the entry {name!r} leaves the folder that it is extracted to: refused")
    return path


def refuse_outside(path: Path, folder: Path, name: str, archive: Path) -> None:
    """Refuse a path that, links followed, is not below `folder`."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{archive}: the link {name} leaves the folder that it is extracted to: refused")
