"""One file over HTTP into a `.part` file that survives every interruption: the next attempt asks for the rest only.

Beside `<name>.part` stands `<name>.part.json` with the address, the size and the validators (ETag, Last-Modified) of
what the part belongs to, so that the rest of another file is never glued to it (RFC 9110, sections 13 and 14).
"""

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.progress import track, warn

TIMEOUT = 60.0  # seconds without a byte
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each attempt that follows one without progress
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be gone in a moment
MEGABYTE = 10**6
BLOCK = 1 << 16
SIGNATURES = {".zip": b"PK", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ"}
AGENT = "semantic-segmentation-workflow"
Open = Callable[..., http.client.HTTPResponse]  # how an address is opened: urllib's urlopen, or that of a logged-in user
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RefusedError(Exception):
    """An address does not give the file; the message is the reason, without the address."""


class DroppedError(Exception):
    """The connection ended before the file did. `unreachable`: there was none."""

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


class StaleError(Exception):
    """What the server has is not what the part belongs to."""


@dataclass(frozen=True)
class Origin:
    """What a part file is a part of. `total`: bytes of the whole file, null where the server does not say."""

    url: str
    total: int | None = None
    etag: str | None = None
    modified: str | None = None


def download(url: str, part: Path, *, name: str, total: int | None, checked: bool, opened: Open = urllib.request.urlopen) -> bool:
    """Bring all of the file at `url` into `part`, going on from what is there; True where the last connection did.

    `total`: the size that it must have, bytes. `checked`: a checksum follows, so a part from another mirror may be
    continued if the sizes agree. Raises RefusedError with the reason, and UserError when the disk is full; both keep the part.
    """
    before = furthest = size(part)
    failures = 0
    while True:
        try:
            return attempt(url, part, name, total, checked, opened)
        except StaleError:
            discard(part)
        except DroppedError as error:
            failures = failures + 1 if size(part) <= furthest else 0
            furthest = max(furthest, size(part))
            if failures > len(PAUSES) or (error.unreachable and furthest == before):
                raise RefusedError(str(error)) from None
            pause = PAUSES[max(failures - 1, 0)]
            warn(f"{url}: {error}; trying again in {pause:.0f} s")
            time.sleep(pause)


def attempt(url: str, part: Path, name: str, total: int | None, checked: bool, opened: Open) -> bool:
    """One connection; True where it went on from what was there."""
    held, origin = size(part), read_origin(part)
    if origin is None or not (origin.url == url or (checked and origin.total)):
        held, origin = 0, None
    if origin and held and held == origin.total:  # killed between the last byte and the rename
        return True
    request = urllib.request.Request(url, headers=headers(origin, held, url))
    with connection(request, opened) as response:
        if response.status == 206 and origin is not None and held:
            receive(response, part, held, rest(response, origin, held, url), name)
            return True
        if response.status != 200:
            raise RefusedError(f"answers {response.status} {response.reason}")
        whole = length(response)
        if total is not None and whole is not None and whole != total:
            raise RefusedError(f"offers {whole} bytes, and the file has {total}")
        first = head(response, name)
        begin(part, Origin(url, whole, response.headers["ETag"], response.headers["Last-Modified"]), first)
        receive(response, part, len(first), whole, name)
        return False


def headers(origin: Origin | None, held: int, url: str) -> dict[str, str]:
    """The request's headers: for the rest of the file, if it is still the same file."""
    found = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if origin is None or not held:
        return found
    found["Range"] = f"bytes={held}-"
    validator = origin.etag if origin.etag and not origin.etag.startswith("W/") else origin.modified
    if validator and origin.url == url:
        found["If-Range"] = validator
    return found


@contextlib.contextmanager
def connection(request: urllib.request.Request, opened: Open = urllib.request.urlopen) -> Iterator[http.client.HTTPResponse]:
    """The open response (redirects followed); what goes wrong becomes RefusedError, DroppedError or StaleError."""
    try:
        response = opened(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and request.has_header("Range"):
            raise StaleError from None
        kind = DroppedError if error.code in PASSING else RefusedError
        raise kind(f"{error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise fault(error.reason) from None
    except (ValueError, OSError, http.client.HTTPException) as error:
        raise fault(error) from None
    with response:
        yield response


def fault(error: object) -> Exception:
    """What a failure before the first byte means."""
    if isinstance(error, ValueError | ssl.SSLCertVerificationError) or not isinstance(error, OSError | http.client.HTTPException):
        return RefusedError(str(error))
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    reason = "no answer" if isinstance(error, TimeoutError) else said
    return DroppedError(reason, unreachable=isinstance(error, socket.gaierror | ConnectionRefusedError))


def rest(response: http.client.HTTPResponse, origin: Origin, held: int, url: str) -> int:
    """The whole file's size; StaleError unless a partial answer goes on exactly where the part ends, to the same file's end."""
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers["Content-Range"] or "")
    if span is None or int(span[1]) != held or int(span[2]) + 1 != int(span[3]) or int(span[3]) != (origin.total or int(span[3])):
        raise StaleError
    for header, known in (("ETag", origin.etag), ("Last-Modified", origin.modified)):
        if url == origin.url and known and response.headers[header] not in (None, known):
            raise StaleError
    return int(span[3])


def length(response: http.client.HTTPResponse) -> int | None:
    """The size that a whole answer announces."""
    announced = response.headers["Content-Length"]
    return int(announced) if announced and announced.isdigit() and not response.chunked else None


def head(response: http.client.HTTPResponse, name: str) -> bytes:
    """The first bytes of a whole answer, refused where they are not of the archive `name` but of a web page."""
    first = b"".join(pieces(response, 512))
    page = first.lstrip().lower().startswith((b"<!doctype html", b"<html"))
    signature = SIGNATURES.get(Path(name).suffix.lower(), b"")
    if page or (response.headers.get_content_type() == "text/html" and not (signature and first.startswith(signature))):
        raise RefusedError("answers with a web page instead of the file (a login, a licence or an error?)")
    if not first.startswith(signature):
        raise RefusedError(f"answers with something that is no {Path(name).suffix} file")
    return first


def pieces(response: http.client.HTTPResponse, limit: int | None = None) -> Iterator[bytes]:
    """The answer's bytes as they come, `limit` of them at most."""
    left = limit if limit is not None else BLOCK
    while left:
        try:
            piece = response.read1(min(left, BLOCK))
        except TimeoutError:
            raise DroppedError(f"no byte for {TIMEOUT:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise DroppedError(f"the connection broke ({error or type(error).__name__})") from None
        if not piece:
            return
        yield piece
        left -= len(piece) if limit is not None else 0


def begin(part: Path, origin: Origin, first: bytes) -> None:
    """Start a part afresh. It is empty while its origin is written, so that old bytes never get a new origin."""
    with writing(part):
        part.write_bytes(b"")
        files.write_json(part.with_name(f"{part.name}.json"), asdict(origin))
        part.write_bytes(first)


def receive(response: http.client.HTTPResponse, part: Path, held: int, whole: int | None, name: str) -> None:
    """Append the answer to the part, with progress; DroppedError where it ends too early."""
    if whole is not None and whole - held > (free := shutil.disk_usage(part.parent).free):
        needs = f"{(whole - held) / 1e6:,.1f} MB, and the disk of {part.parent} has {free / 1e6:,.1f} MB free"
        raise UserError(f"{name} needs {needs}: make room and run this again")
    total = whole // MEGABYTE if whole is not None else None
    for _ in track(append(response, part, held), total, name, done=held // MEGABYTE, unit="MB"):
        pass
    if whole is not None and size(part) != whole:
        raise DroppedError(f"the connection ended after {size(part)} of {whole} bytes")


def append(response: http.client.HTTPResponse, part: Path, held: int) -> Iterator[int]:
    """Write the answer's bytes to the part, yielding at each whole megabyte."""
    with writing(part), part.open("ab", buffering=BLOCK) as file:
        for piece in pieces(response):
            file.write(piece)
            file.flush()  # a killed process leaves all that came
            held += len(piece)
            if held // MEGABYTE > (held - len(piece)) // MEGABYTE:
                yield held // MEGABYTE
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(part: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a UserError; the part stays, so that the next attempt goes on from it."""
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in FULL else f"cannot write ({error.strerror})"
        raise UserError(f"{why}: {part} keeps what has come; make room and run this again, and it goes on from there") from error


def size(path: Path) -> int:
    """A file's size in bytes, 0 where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def discard(part: Path) -> None:
    """Remove a part and what is known of it."""
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def read_origin(part: Path) -> Origin | None:
    """What the part belongs to, if that is known."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Origin(**json.loads(part.with_name(f"{part.name}.json").read_bytes()))
    return None
