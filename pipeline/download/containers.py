"""What zip and tar archives hold, entry by entry; damage, passwords, devices and bombs are refused with the archive's name."""

import bz2
import contextlib
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

from pipeline.ground.errors import UserError

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
BLOCK = 1 << 20
BOMB_RATIO, BOMB_BYTES = 100, 4 << 30  # an archive that unpacks beyond both is refused
LONGEST = 1 << 20  # bytes of what is read at once: names and links
QUIET = 500  # archives of fewer entries are unpacked without progress
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError, struct.error, ValueError, NotImplementedError, RecursionError)
COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": lambda file: bz2.BZ2File(file),
    b"\xfd7zXZ": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 it ends with `file`
}
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


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
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(str(error)) from None
            raise
        if header.type in NAMES and header.size > LONGEST:  # tarfile would read it into memory
            raise tarfile.ReadError(f"a name of {header.size} bytes")
        return header


@contextlib.contextmanager
def reading(archive: Path) -> Iterator[tuple[Iterator[Entry], int | None, int]]:
    """An archive's entries, their number (0: too few to show progress, None: unknown) and the bytes that it says they have.

    Faults become UserErrors. A tar archive does not say how large its files are: 0.
    """
    try:
        with archive.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                yield zip_entries(archive, file)
            else:
                unpacked = next((wrap(file) for magic, wrap in COMPRESSED.items() if start.startswith(magic)), file)
                yield tar_entries(archive, unpacked), None, 0
    except UserError:
        raise
    except (EOFError, OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault; without a number the archive's
            raise
        truncated = isinstance(error, EOFError) or "unexpected end of data" in str(error)
        fault = "truncated" if truncated else "damaged, or no zip or tar archive"
        raise UserError(f"{archive} is {fault} ({error}): delete it and download it again") from None


def zip_entries(archive: Path, file: IO[bytes]) -> tuple[Iterator[Entry], int, int]:
    """A zip file's entries, their number and their bytes, from the directory at its end."""
    if zipfile.is_zipfile(file):
        file.seek(0)
    else:  # yet it begins as one
        raise EOFError("the directory at its end is missing")
    container = zipfile.ZipFile(file)
    members = container.infolist()
    total = sum(member.file_size for member in members)
    refuse_bomb(total, archive)
    return (zip_entry(container, member, archive) for member in members), len(members) if len(members) >= QUIET else 0, total


def zip_entry(container: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> Entry:
    """One entry of a zip file."""
    if member.flag_bits & 1:
        raise UserError(f"{archive}: {member.filename} is encrypted: only archives without a password can be extracted")
    name, mode = member.filename.replace("\\", "/"), member.external_attr >> 16
    if name.endswith("/"):
        return Entry(name, "folder")
    if stat.S_ISLNK(mode):
        if member.file_size > LONGEST:
            raise UserError(f"{archive}: the link {name} names its target in {member.file_size} bytes: refused")
        return Entry(name, "symbolic", target=container.read(member).decode(errors="surrogateescape"))
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UserError(f"{archive}: {member.filename} is a device or pipe: refused")
    return Entry(name, "file", member.file_size, content=lambda: container.open(member))


def tar_entries(archive: Path, file: IO[bytes]) -> Iterator[Entry]:
    """A tar file's entries, in one pass; the rest of a compressed stream is read too, for its checksum."""
    container = tarfile.open(fileobj=file, mode="r:", tarinfo=CompleteTarInfo)  # noqa: SIM115 `file` is the caller's
    total = 0
    while (member := container.next()) is not None:
        total += member.size + tarfile.BLOCKSIZE
        refuse_bomb(total, archive)
        yield tar_entry(container, member, archive)
    while block := file.read(BLOCK):
        total += len(block)
        refuse_bomb(total, archive)


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


def refuse_bomb(total: int, archive: Path) -> None:
    """Refuse an archive that unpacks to `total` bytes, far more than a data set's does."""
    if total > BOMB_BYTES and total > BOMB_RATIO * archive.stat().st_size:
        raise UserError(f"{archive} unpacks to more than {total / 1e9:.1f} GB, over {BOMB_RATIO} times its size: refused as a bomb")
