"""Safe extraction of zip and tar archives into the store: whole or not at all, and nothing outside the folder.

Every entry is written by this file, not by the archive libraries: names that leave the folder, links that leave it,
devices, entries that write through a link, names given twice, passwords and bombs are refused with the entry's name.
A killed extraction leaves a folder of another name, which the next one removes.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal, Self

from pipeline import files, store
from pipeline.digests import digests
from pipeline.errors import UserError
from pipeline.progress import track

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
BLOCK = 1 << 20
BOMB_RATIO, BOMB_BYTES = 100, 4 << 30  # an archive that unpacks beyond both is refused
QUIET = 500  # archives of fewer entries are unpacked without progress
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError, struct.error, ValueError, NotImplementedError)
COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": lambda file: bz2.BZ2File(file),
    b"\xfd7zXZ": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 it ends with `file`
}


@dataclass(frozen=True)
class Entry:
    """One member of an archive. `target`: where a link points (symbolic: from its own folder, hard: from the top)."""

    name: str
    kind: Literal["file", "folder", "symbolic", "hard"]
    size: int = 0
    target: str = ""
    content: Callable[[], IO[bytes]] | None = None


class CompleteTarInfo(tarfile.TarInfo):
    """A tar header that must be there: tarfile ends silently, with fewer files, at a damaged or missing one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header in a block of 512 bytes; only a block of zeros ends an archive."""
        if len(buf) < tarfile.BLOCKSIZE:
            raise EOFError("its end is missing")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(str(error)) from None
            raise


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
        with reading(archive) as (entries, total):
            unpack(track(entries, total, f"{archive.name}: extracting", unit="files"), partial, archive)
        os.sync()  # the rename must not outlive a power cut that the files do not
        files.write_json(record_of(folder), {"files": count(partial)})
        partial.replace(folder)
        files.sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def record_of(folder: Path) -> Path:
    """Where the number of an extracted folder's files is kept."""
    return folder.with_name(f".{folder.name}.files")


def count(folder: Path) -> int:
    """The number of files at any depth."""
    return sum(len(names) for _, _, names in os.walk(folder))


def refuse_losses(folder: Path) -> None:
    """Refuse an extracted folder that files were taken from: it would be a smaller dataset, and nobody would notice."""
    if not record_of(folder).is_file():  # of an earlier version
        return
    whole = int(files.read_json(record_of(folder), f"delete {folder} and run this again")["files"])
    if (left := count(folder)) < whole:
        raise UserError(f"{folder} has {left} of the {whole} files that were extracted: delete it and run this again")


def verify(archive: Path) -> None:
    """Read an archive to its end, writing nothing; a UserError says whether it is truncated, damaged or no archive."""
    with reading(archive) as (entries, _):
        for entry in entries:
            if entry.content is not None:
                with entry.content() as content:
                    while content.read(BLOCK):
                        pass


@contextlib.contextmanager
def reading(archive: Path) -> Iterator[tuple[Iterator[Entry], int | None]]:
    """An archive's entries and their number (0: too few to show progress, None: unknown); faults become UserErrors."""
    try:
        with archive.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                yield zip_entries(archive, file)
            else:
                unpacked = next((wrap(file) for magic, wrap in COMPRESSED.items() if start.startswith(magic)), file)
                yield tar_entries(archive, unpacked), None
    except UserError:
        raise
    except (EOFError, OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault; without a number the archive's
            raise
        truncated = isinstance(error, EOFError) or "unexpected end of data" in str(error)
        fault = "truncated" if truncated else "damaged, or no zip or tar archive"
        raise UserError(f"{archive} is {fault} ({error}): delete it and download it again") from None


def zip_entries(archive: Path, file: IO[bytes]) -> tuple[Iterator[Entry], int]:
    """A zip file's entries and their number, from the directory at its end."""
    if zipfile.is_zipfile(file):
        file.seek(0)
    else:  # yet it begins as one
        raise EOFError("the directory at its end is missing")
    container = zipfile.ZipFile(file)
    members = container.infolist()
    refuse_bomb(sum(member.file_size for member in members), archive)
    return (zip_entry(container, member, archive) for member in members), len(members) if len(members) >= QUIET else 0


def zip_entry(container: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> Entry:
    """One entry of a zip file."""
    if member.flag_bits & 1:
        raise UserError(f"{archive}: {member.filename} is encrypted: only archives without a password can be extracted")
    name, mode = member.filename.replace("\\", "/"), member.external_attr >> 16
    if name.endswith("/"):
        return Entry(name, "folder")
    if stat.S_ISLNK(mode):
        return Entry(name, "symbolic", target=container.read(member).decode(errors="surrogateescape"))
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UserError(f"{archive}: {member.filename} is a device or pipe: refused")
    return Entry(name, "file", member.file_size, content=lambda: container.open(member))


def tar_entries(archive: Path, file: IO[bytes]) -> Iterator[Entry]:
    """A tar file's entries, in one pass; the rest of a compressed stream is read too, for its checksum."""
    container = tarfile.open(fileobj=file, mode="r:", tarinfo=CompleteTarInfo)  # noqa: SIM115 `file` is the caller's
    total = 0
    while (member := container.next()) is not None:
        total += member.size
        refuse_bomb(total, archive)
        yield tar_entry(container, member, archive)
    while file.read(BLOCK):
        pass


def tar_entry(container: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> Entry:
    """One entry of a tar file."""
    if member.isdir():
        return Entry(member.name, "folder")
    if member.issym() or member.islnk():
        return Entry(member.name, "symbolic" if member.issym() else "hard", target=member.linkname)
    if not member.isreg():
        raise UserError(f"{archive}: {member.name} is a device or pipe: refused")
    content = container.extractfile(member)
    assert content is not None
    return Entry(member.name, "file", member.size, content=lambda: content)


def unpack(entries: Iterator[Entry], folder: Path, archive: Path) -> None:
    """Write `entries` under `folder`: files as they come, then the links, so that nothing is written through one."""
    links: list[Entry] = []
    left = shutil.disk_usage(folder).free
    for entry in entries:
        path = folder / safe_name(entry.name, archive)
        if entry.kind in ("symbolic", "hard"):
            links.append(entry)
            continue
        left -= entry.size
        if left < 0:
            raise UserError(f"{archive} unpacks to more than the disk of {folder.parent} has free: make room and run this again")
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


def refuse_bomb(total: int, archive: Path) -> None:
    """Refuse an archive that unpacks to `total` bytes, far more than a data set's does."""
    if total > BOMB_BYTES and total > BOMB_RATIO * archive.stat().st_size:
        raise UserError(f"{archive} unpacks to more than {total / 1e9:.1f} GB, over {BOMB_RATIO} times its size: refused as a bomb")
