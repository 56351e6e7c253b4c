"""A server on this machine that misbehaves as it is told, and what it serves."""

import hashlib
import http.server
import io
import json
import re
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.download import archives
from pipeline.download.archives import Archive


def zipped(seed: int = 0, size: int = 300_000) -> bytes:
    """A zip file of about `size` bytes that do not compress."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as container:
        container.writestr(zipfile.ZipInfo("top/noise.bin"), np.random.default_rng(seed).bytes(size))
    return buffer.getvalue()


@dataclass
class Site:
    """What the server has and how it misbehaves; `requests` are the (path, Range, If-Range) that it saw."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    announce: bool = True  # Content-Length
    drop_after: list[int] = field(default_factory=list)  # bytes of the body sent before the connection breaks, per request
    silence: float = 0.0  # seconds before an answer
    pace: float = 0.0  # seconds between blocks of 64 KiB
    wrong_range: bool = False
    chunked: bool = False
    statuses: dict[str, list[int]] = field(default_factory=dict)
    pages: set[str] = field(default_factory=set)  # paths answered with 200 and a web page
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    base: str = ""

    def ranges_seen(self) -> list[str | None]:
        return [span for _, span, _ in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, site: Site) -> None:
        self.site = site
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        self.close_connection = True
        time.sleep(site.silence)
        if self.path in site.redirects:
            return self.answer(302, b"", {"Location": site.redirects[self.path]})
        if site.statuses.get(self.path):
            return self.answer(site.statuses[self.path].pop(0), b"<html>an error</html>", {"Content-Type": "text/html"})
        if self.path in site.pages:
            return self.answer(200, b"<!DOCTYPE html><html>please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        if self.path not in site.files:
            return self.answer(404, b"no", {})
        body, found = site.files[self.path], re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        headers = {key: value for key, value in (("ETag", site.etag), ("Last-Modified", site.modified)) if value}
        fresh = self.headers["If-Range"] in (None, site.etag, site.modified)
        if not (found and site.ranges and fresh):
            return self.answer(200, body, headers)
        start = int(found[1])
        if start >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        shown = start + 7 if site.wrong_range else start
        return self.answer(206, body[start:], headers | {"Content-Range": f"bytes {shown}-{len(body) - 1}/{len(body)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if self.site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif self.site.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        stop = self.site.drop_after.pop(0) if self.site.drop_after and status in (200, 206) else len(body)
        for begin in range(0, stop, 1 << 16):
            block = body[begin : min(begin + (1 << 16), stop)]
            try:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if self.site.chunked else block)
            except OSError:  # the client was killed
                return
            time.sleep(self.site.pace)
        if self.site.chunked and stop == len(body):
            self.wfile.write(b"0\r\n\r\n")


def leave_part(archive: Archive, content: bytes, **origin: object) -> Path:
    """What a killed download leaves."""
    part = archives.FOLDER / f"{archive.name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    part.with_name(f"{part.name}.json").write_text(json.dumps({"url": archive.urls[0]} | origin))
    return part


def published(body: bytes, *urls: str) -> Archive:
    return Archive(name="a.zip", urls=urls, sha256=hashlib.sha256(body).hexdigest(), size=len(body))
