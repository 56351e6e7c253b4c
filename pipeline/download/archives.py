"""Where a dataset's archives come from: a folder that the user names, or a download, checked before anything is read.

    DATA_ARCHIVES=<folder>           a file of the archive's name there is used in place and never touched
    data/archives/<name>             what was downloaded
    DATA_ARCHIVES=<http address>     asked before the archive's own addresses, as <address>/<name>

An archive without a published checksum is read to its end when it is first seen, and its SHA-256 is kept in
data/archives/recorded.json; from then on any other content is refused.
"""

import os
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.download import containers, extraction, transfer
from pipeline.download.accounts import Account
from pipeline.ground import files
from pipeline.ground.digests import digests, remember
from pipeline.ground.errors import BusyError, UserError
from pipeline.ground.progress import warn

FOLDER = Path("data/archives")
COMMAND = "uv run python -m stages.download"
MISMATCH = "has a checksum mismatch"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file that a dataset needs. `note`: its licence, or how large it is; `size` in bytes, where it is known exactly."""

    name: str  # the file name that is looked up in DATA_ARCHIVES and data/archives
    urls: tuple[str, ...] = ()  # mirrors, in the order in which they are tried
    sha256: str | None = None
    sha1: str | None = None
    md5: str | None = None
    size: int | None = None
    note: str = ""
    gate: str = ""  # what its site asks of a person who wants it
    account: Account | None = None  # whose login the addresses ask for

    @property
    def checksums(self) -> dict[str, str]:
        """The published checksums by algorithm."""
        return {key: value for key in ("sha256", "sha1", "md5") if (value := getattr(self, key)) is not None}


@dataclass(frozen=True)
class Fetched:
    """An archive on this machine, checked. `size` in bytes."""

    path: Path
    sha256: str
    size: int


def fetch(archive: Archive, folder: Path = FOLDER) -> Fetched:
    """The checked archive, downloaded into `folder` if it is nowhere yet; a UserError says what is wrong and the way out."""
    with alone(folder):
        path = find(archive, folder)
        if path is None:
            return download(archive, folder)
        if reason := fault(archive, path, folder):
            changed = reason.startswith(MISMATCH) and not archive.checksums
            accept = f", or if the change is meant, accept it with `{COMMAND} --accept {archive.name}`" if changed else ""
            raise UserError(f"{path} {reason}: delete it and get it again{accept}")
        return fetched(path)


def refuse_gated(wanted: Iterable[Archive], folder: Path = FOLDER) -> None:
    """Refuse, all in one message and before the first byte, archives that a person must get: nowhere here, and no address to ask."""
    lacking = [archive for archive in wanted if find(archive, folder) is None and not addresses(archive)]
    if not lacking:
        return
    named = " and ".join(archive.name + (f" ({archive.note})" if archive.note else "") for archive in lacking)
    gates = "; ".join(dict.fromkeys(archive.gate for archive in lacking if archive.gate)) or "no address is known"
    one = len(lacking) == 1
    raise UserError(
        f"{named} {'is' if one else 'are'} not in {folder}{beside()}: {gates}; put {'it' if one else 'them'} as downloaded into {folder}, "
        f"or into any folder and set DATA_ARCHIVES to that folder, and run this again"
    )


def locate(archive: Archive, folder: Path = FOLDER) -> Path:
    """Where the archive lies, unchecked; a UserError where it was not downloaded."""
    path = find(archive, folder)
    if path is None:
        raise UserError(f"{archive.name} is not in {folder}{beside()}: run `{COMMAND}`")
    return path


def find(archive: Archive, folder: Path) -> Path | None:
    """The archive in the user's folder or in ours."""
    given = place()
    candidates = ([given / archive.name] if isinstance(given, Path) else []) + [folder / archive.name]
    return next((path for path in candidates if path.is_file()), None)


def place() -> Path | str | None:
    """What DATA_ARCHIVES names: a folder, the base of an address, or nothing."""
    given = os.environ.get("DATA_ARCHIVES")
    if not given:
        return None
    if given.startswith(("http://", "https://")):
        return given.rstrip("/")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"DATA_ARCHIVES is {given}, which is neither a folder nor an http(s) address")
    return folder


def beside() -> str:
    """The end of a message: where else was looked."""
    given = place()
    return f" or in {given} (DATA_ARCHIVES)" if isinstance(given, Path) else ""


def addresses(archive: Archive) -> tuple[str, ...]:
    """Where the archive is asked for, in order."""
    given = place()
    own = archive.urls if archive.account is None or archive.account.known else ()
    return ((f"{given}/{urllib.parse.quote(archive.name)}",) if isinstance(given, str) else ()) + own


def download(archive: Archive, folder: Path) -> Fetched:
    """Try every address; the file gets its name when it is whole and right."""
    refuse_gated([archive], folder)
    reasons = []
    urls = addresses(archive)
    for url in urls:
        print(f"downloading {archive.name} from {url}{f' ({archive.note})' if archive.note else ''}", file=sys.stderr, flush=True)
        try:
            return download_from(url, archive, folder)
        except transfer.RefusedError as error:
            reasons.append(f"{url}: {error}")
            if url != urls[-1]:
                warn(reasons[-1])
    note = "; ".join(text for text in (archive.note, archive.gate) if text)
    raise UserError(
        f"{archive.name} cannot be downloaded ({'; '.join(reasons)}) and is not in {folder}{beside()}: get it by other means"
        f"{f' ({note})' if note else ''}, put it into a folder and set DATA_ARCHIVES to that folder"
    )


def download_from(url: str, archive: Archive, folder: Path) -> Fetched:
    """One address; what turns out wrong after a resumed download is downloaded once more from its beginning."""
    part = folder / f"{archive.name}.part"
    opened = archive.account.open() if archive.account is not None and url in archive.urls else urllib.request.urlopen
    for again in (True, False):
        resumed = transfer.download(url, part, name=archive.name, total=archive.size, checked=bool(archive.checksums), opened=opened)
        reason = fault(archive, part, folder)
        if reason is None:
            break
        transfer.discard(part)
        if not (resumed and again):
            raise transfer.RefusedError(f"the file {reason}")
        warn(f"{url}: the resumed file {reason}; downloading it from its beginning")
    path = folder / archive.name
    known = digests(part, {"sha256"} | archive.checksums.keys())
    part.replace(path)
    files.sync(folder)
    transfer.discard(part)
    remember(path, known)
    return fetched(path)


def fetched(path: Path) -> Fetched:
    """A checked file."""
    return Fetched(path, digests(path)["sha256"], path.stat().st_size)


def fault(archive: Archive, path: Path, folder: Path) -> str | None:
    """What is wrong with a file that should be `archive`: a phrase that follows its name, or nothing."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"is {'truncated' if size < archive.size else 'too long'} ({size} of {archive.size} bytes)"
    if archive.checksums:
        return difference(archive.checksums, path, archive.name, "published")
    records = recorded(folder)
    key = record_key(archive, path, folder)
    if key in records:
        return difference(records[key], path, archive.name, "recorded at its first use")
    damage = damaged(path, archive.name)
    if damage is None:
        files.write_json(folder / "recorded.json", records | {key: digests(path)})
    return damage


def difference(expected: Mapping[str, str], path: Path, name: str, origin: str) -> str | None:
    """A phrase for the first checksum that is not as expected, and for the damage that explains it."""
    found = digests(path, {"sha256"} | expected.keys())
    for algorithm, value in expected.items():
        if found[algorithm] != value.lower():
            return damaged(path, name) or f"{MISMATCH} ({algorithm} {found[algorithm]}, {origin}: {value})"
    return None


def damaged(path: Path, name: str) -> str | None:
    """What reading the archive to its end finds wrong: a phrase that follows its name, or nothing."""
    if not name.lower().endswith(containers.SUFFIXES):
        return None
    try:
        extraction.verify(path)
    except UserError as error:
        return str(error).removeprefix(str(path)).partition(": delete")[0].lstrip(": ")
    return None


def recorded(folder: Path) -> dict[str, dict[str, str]]:
    """The checksums of first uses: by archive name for downloads, by full path for the user's own files."""
    path = folder / "recorded.json"
    return files.read_json(path, "delete it, and the archives are trusted as they are now") if path.exists() else {}


def record_key(archive: Archive, path: Path, folder: Path) -> str:
    """A download is the same file from whatever address; a user's file is the one at its path."""
    return archive.name if path.parent.resolve() == folder.resolve() else str(path.resolve())


def forget(archive: Archive, folder: Path = FOLDER) -> None:
    """Drop what was recorded of an archive's first use, so that it is trusted as it is now."""
    with alone(folder):
        path = find(archive, folder)
        dropped = {archive.name} | ({record_key(archive, path, folder)} if path else set())
        files.write_json(folder / "recorded.json", {key: value for key, value in recorded(folder).items() if key not in dropped})


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that downloads into `folder`; wait for another one, and say so."""
    lock = folder / ".lock"
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(lock, str(folder)))
        except BusyError as error:
            print(f"{error}; waiting for it to end", file=sys.stderr, flush=True)
            held.enter_context(files.locked(lock, str(folder), wait=True))
        except UserError as error:
            raise UserError(
                f"{error}: checksums are kept there; for archives that lie where nothing can be written set DATA_ARCHIVES"
            ) from None
        yield
