"""Downloads against a real server on this machine: resuming, refusing, checking, being killed."""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline.download import archives, transfer
from pipeline.download.archives import Archive
from pipeline.ground import digests
from pipeline.ground.errors import UserError

ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0, 0.0))
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, site=site))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.base = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def archive(site: Site, workspace: Path) -> Archive:
    """An archive on the server, without a published checksum."""
    site.files["/a.zip"] = zipped()
    return Archive(name="a.zip", urls=(f"{site.base}/a.zip",), note="get it from the shelf")


def leave_part(archive: Archive, content: bytes, **origin: object) -> Path:
    """What a killed download leaves."""
    part = archives.FOLDER / f"{archive.name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    part.with_name(f"{part.name}.json").write_text(json.dumps({"url": archive.urls[0]} | origin))
    return part


def published(body: bytes, *urls: str) -> Archive:
    return Archive(name="a.zip", urls=urls, sha256=hashlib.sha256(body).hexdigest(), size=len(body))


def test_a_download_is_whole_checked_and_not_repeated(site: Site, archive: Archive) -> None:
    fetched = archives.fetch(archive)
    assert fetched.path.read_bytes() == site.files["/a.zip"]
    assert fetched.sha256 == hashlib.sha256(site.files["/a.zip"]).hexdigest()
    assert fetched.size == len(site.files["/a.zip"])
    assert archives.fetch(archive) == fetched
    assert archives.locate(archive) == fetched.path
    assert len(site.requests) == 1
    assert not list(archives.FOLDER.glob("*.part*"))


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_every_published_checksum_counts(site: Site, archive: Archive, algorithm: str) -> None:
    right = hashlib.new(algorithm, site.files["/a.zip"]).hexdigest()
    archives.fetch(Archive(name="a.zip", urls=archive.urls, **{algorithm: right.upper()}))
    with pytest.raises(UserError, match=rf"checksum mismatch \({algorithm} {right}, published: 0+\)"):
        archives.fetch(Archive(name="a.zip", urls=archive.urls, **{algorithm: "0" * len(right)}))


def test_a_download_with_another_checksum_is_thrown_away(site: Site, archive: Archive) -> None:
    wanted = published(zipped(seed=1), *archive.urls)
    with pytest.raises(UserError, match=r"a\.zip cannot be downloaded .*checksum mismatch.*DATA_ARCHIVES"):
        archives.fetch(wanted)
    assert not list(archives.FOLDER.glob("a.zip*"))
    site.files["/a.zip"] = zipped(seed=1)
    assert archives.fetch(wanted).path.read_bytes() == zipped(seed=1)


def test_only_the_rest_is_asked_for(site: Site, archive: Archive) -> None:
    leave_part(archive, site.files["/a.zip"][:1000], total=len(site.files["/a.zip"]), etag='"one"')
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.requests == [("/a.zip", "bytes=1000-", '"one"')]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_the_date_guards_the_rest(site: Site, archive: Archive, etag: str | None) -> None:
    site.etag, site.modified = etag, "Mon, 02 Mar 2026 10:00:00 GMT"
    leave_part(archive, site.files["/a.zip"][:1000], total=len(site.files["/a.zip"]), etag=etag, modified=site.modified)
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.requests == [("/a.zip", "bytes=1000-", site.modified)]


def test_the_rest_of_a_changed_file_is_not_glued_on(site: Site, archive: Archive) -> None:
    leave_part(archive, b"x" * 1000, total=len(site.files["/a.zip"]), etag='"before"')
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.requests == [("/a.zip", "bytes=1000-", '"before"')]  # answered with the whole file


def test_a_server_that_ignores_if_range_is_seen_through(
    site: Site, archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "headers", lambda origin, held, url: {"Range": f"bytes={held}-"} if held else {})
    leave_part(archive, b"x" * 1000, total=len(site.files["/a.zip"]), etag='"before"')
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.ranges_seen() == ["bytes=1000-", None]
    assert "the resumed file" not in capsys.readouterr().err  # seen before it was glued


@pytest.mark.parametrize("fault", ["ignored", "wrong", "shrunk", "grown"])
def test_a_range_that_is_not_served_starts_afresh(site: Site, archive: Archive, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    body = site.files["/a.zip"]
    site.ranges, site.wrong_range, site.etag = fault != "ignored", fault == "wrong", None
    held = len(body) + 5 if fault == "shrunk" else 1000
    leave_part(archive, b"x" * held, total=len(body) + (10 if fault in ("shrunk", "grown") else 0))
    assert archives.fetch(archive).path.read_bytes() == body
    assert site.ranges_seen()[1:] == ([] if fault == "ignored" else [None])
    assert "the resumed file" not in capsys.readouterr().err  # seen before it was glued


def test_a_part_of_another_address_is_not_used(site: Site, archive: Archive) -> None:
    part = leave_part(archive, b"x" * 1000, total=len(site.files["/a.zip"]))
    part.with_name(f"{part.name}.json").write_text(json.dumps({"url": "http://elsewhere/a.zip", "total": len(site.files["/a.zip"])}))
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.ranges_seen() == [None]


def test_a_mirror_goes_on_where_another_stopped_if_a_checksum_follows(site: Site, archive: Archive) -> None:
    body = site.files["/b.zip"] = site.files["/a.zip"]
    site.drop_after = [100_000] + [0] * 4
    fetched = archives.fetch(published(body, f"{site.base}/a.zip", f"{site.base}/b.zip"))
    assert fetched.path.read_bytes() == body
    assert site.requests[-1] == ("/b.zip", "bytes=100000-", None)


def test_a_wrongly_resumed_file_is_downloaded_again(site: Site, archive: Archive) -> None:
    body = site.files["/a.zip"]
    site.etag = None  # nothing tells that the part is another file's
    leave_part(archive, b"PK" + b"x" * 998, total=len(body))
    assert archives.fetch(published(body, *archive.urls)).path.read_bytes() == body
    assert site.ranges_seen() == ["bytes=1000-", None]


def test_a_complete_part_needs_no_request(site: Site, archive: Archive) -> None:
    leave_part(archive, site.files["/a.zip"], total=len(site.files["/a.zip"]))
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.requests == []


@pytest.mark.parametrize("chunked", [False, True])
def test_broken_connections_are_taken_up_again(site: Site, archive: Archive, chunked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    site.chunked = chunked
    site.drop_after = [65536, 65536, 10]
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.ranges_seen() == [None, "bytes=65536-", "bytes=131072-", "bytes=131082-"] if not chunked else len(site.requests) == 4
    assert capsys.readouterr().err.count("trying again") == 3


def test_a_server_that_always_breaks_is_given_up(site: Site, archive: Archive) -> None:
    site.drop_after = [1000] + [0] * 50
    with pytest.raises(UserError, match=r"the connection ended after 1000 of \d+ bytes"):
        archives.fetch(archive)
    assert len(site.requests) == 5  # one that made progress, four that did not
    assert (archives.FOLDER / "a.zip.part").stat().st_size == 1000


def test_passing_faults_of_a_server_are_waited_for(site: Site, archive: Archive) -> None:
    site.statuses["/a.zip"] = [503, 429]
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_goes_to_the_next_mirror_at_once(site: Site, archive: Archive, status: int) -> None:
    site.statuses["/gone.zip"] = [status]
    both = Archive(name="a.zip", urls=(f"{site.base}/gone.zip", *archive.urls))
    assert archives.fetch(both).path.read_bytes() == site.files["/a.zip"]
    assert [path for path, _, _ in site.requests] == ["/gone.zip", "/a.zip"]


def test_all_addresses_and_reasons_are_named(site: Site, workspace: Path) -> None:
    site.statuses["/x.zip"] = [403]
    site.pages.add("/y.zip")
    site.files["/z.zip"] = b"not an archive at all"
    missing = Archive(name="x.zip", urls=tuple(f"{site.base}/{name}" for name in ("x.zip", "y.zip", "z.zip")), note="ask the authors")
    with pytest.raises(UserError) as caught:
        archives.fetch(missing)
    message = str(caught.value)
    for part in ("x.zip: 403 Forbidden", "y.zip: answers with a web page", "z.zip: answers with something that is no .zip"):
        assert part in message
    assert "(ask the authors), put it into a folder and set DATA_ARCHIVES" in message
    assert "\n" not in message
    assert not list(archives.FOLDER.glob("x.zip*"))


def test_a_web_page_does_not_destroy_a_part(site: Site, archive: Archive) -> None:
    part = leave_part(archive, site.files["/a.zip"][:1000], total=len(site.files["/a.zip"]), etag='"one"')
    site.pages.add("/a.zip")
    with pytest.raises(UserError, match="web page"):
        archives.fetch(archive)
    assert part.stat().st_size == 1000
    site.pages.clear()
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.ranges_seen()[-1] == "bytes=1000-"


def test_redirects_are_followed_with_the_range(site: Site, archive: Archive) -> None:
    site.redirects["/moved.zip"] = f"{site.base}/a.zip"
    moved = Archive(name="a.zip", urls=(f"{site.base}/moved.zip",))
    leave_part(moved, site.files["/a.zip"][:500], total=len(site.files["/a.zip"]), etag='"one"')
    assert archives.fetch(moved).path.read_bytes() == site.files["/a.zip"]
    assert site.requests[-1] == ("/a.zip", "bytes=500-", '"one"')


def test_nobody_listens(site: Site, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: pytest.fail("waited for a server that is not there"))
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
    with pytest.raises(UserError, match=rf"a\.zip cannot be downloaded \({address}: .*refused"):
        archives.fetch(Archive(name="a.zip", urls=(address,)))


def test_silence_times_out(site: Site, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.1)
    site.silence = 0.3
    with pytest.raises(UserError, match=r"no answer"):
        archives.fetch(archive)
    site.silence, site.pace = 0.0, 0.3
    site.files["/a.zip"] = zipped(size=60_000)  # comes at once; then the connection stays open, and silent
    site.announce = False
    with pytest.raises(UserError, match=r"no byte for"):
        archives.fetch(archive)


def test_a_file_of_another_size_is_not_even_begun(site: Site, archive: Archive) -> None:
    with pytest.raises(UserError, match=r"offers \d+ bytes, and the file has 10"):
        archives.fetch(Archive(name="a.zip", urls=archive.urls, size=10))
    assert not list(archives.FOLDER.glob("a.zip*"))


def test_an_end_that_nobody_announced_is_still_seen(site: Site, archive: Archive) -> None:
    site.announce, site.drop_after = False, [200_000]
    with pytest.raises(UserError, match="truncated"):
        archives.fetch(archive)
    assert not (archives.FOLDER / "a.zip").exists()


def test_a_users_folder_is_used_in_place(site: Site, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "a.zip").write_bytes(zipped(seed=5))
    before = digests.state(own / "a.zip")
    monkeypatch.setenv("DATA_ARCHIVES", str(own))
    fetched = archives.fetch(archive)
    assert fetched.path == own / "a.zip" == archives.locate(archive)
    assert site.requests == []
    assert [path.name for path in own.iterdir()] == ["a.zip"]
    assert digests.state(own / "a.zip") == before


def test_a_users_folder_without_the_file_leads_to_the_download(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("DATA_ARCHIVES", str(tmp_path / "mine"))
    with pytest.raises(
        UserError, match=r"a\.zip is not in data/archives or in .*mine \(DATA_ARCHIVES\): run `uv run python -m stages.download`"
    ):
        archives.locate(archive)
    assert archives.fetch(archive).path == archives.FOLDER / "a.zip"


def test_a_users_address_is_asked_first(site: Site, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/mirror/a.zip"] = zipped(seed=7)
    monkeypatch.setenv("DATA_ARCHIVES", f"{site.base}/mirror/")
    assert archives.fetch(archive).path.read_bytes() == zipped(seed=7)
    assert [path for path, _, _ in site.requests] == ["/mirror/a.zip"]


def test_a_wrong_data_archives_is_named(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ARCHIVES", "/no/such/folder")
    with pytest.raises(UserError, match="DATA_ARCHIVES is /no/such/folder, which is neither a folder nor"):
        archives.fetch(archive)


def test_a_changed_users_file_is_refused_until_accepted(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ARCHIVES", str(tmp_path))
    own = tmp_path / "a.zip"
    own.write_bytes(zipped(seed=1))
    archives.fetch(archive)
    times = own.stat()
    own.write_bytes(zipped(seed=2))  # of the same size, and the time of modification is put back
    os.utime(own, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=r"a\.zip has a checksum mismatch .*`uv run python -m stages.download --accept a.zip`"):
        archives.fetch(archive)
    archives.forget(archive)
    assert archives.fetch(archive).sha256 == hashlib.sha256(zipped(seed=2)).hexdigest()


def test_a_truncated_users_file_is_called_so(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ARCHIVES", str(tmp_path))
    body = zipped()
    (tmp_path / "a.zip").write_bytes(body[:-100])
    for wanted in (archive, published(body), Archive(name="a.zip", md5=hashlib.md5(body).hexdigest())):
        with pytest.raises(UserError, match=r"a\.zip is truncated .*: delete it and get it again$"):
            archives.fetch(wanted)
    assert not (archives.FOLDER / "recorded.json").exists()


def test_a_changed_download_is_refused_after_the_first_use(site: Site, archive: Archive) -> None:
    archives.fetch(archive).path.unlink()
    site.files["/a.zip"] = zipped(seed=3)
    with pytest.raises(UserError, match="recorded at its first use"):
        archives.fetch(archive)
    archives.forget(archive)
    assert archives.fetch(archive).path.read_bytes() == zipped(seed=3)


def test_a_large_file_is_hashed_once(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    compute = digests.compute
    monkeypatch.setattr(digests, "compute", lambda path, algorithms: read.append(path) or compute(path, algorithms))
    assert archives.fetch(archive) == archives.fetch(archive)
    assert len(read) == 1


def script(call: str) -> list[str]:
    code = (
        "import sys; from pipeline.download import archives; from pipeline.download.archives import Archive\n"
        "from pipeline.ground.errors import UserError\n"
        f"try:\n    {call}\nexcept UserError as error:\n    print(error); raise SystemExit(2)"
    )
    return [sys.executable, "-c", code]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_download_goes_on_where_it_was(site: Site, archive: Archive) -> None:
    site.files["/a.zip"], site.pace = zipped(size=3_000_000), 0.05
    call = script(f"archives.fetch(Archive(name='a.zip', urls={archive.urls}))")
    process = subprocess.Popen(call, env=os.environ | {"PYTHONPATH": str(ROOT)})
    part = archives.FOLDER / "a.zip.part"
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > 200_000)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    held = part.stat().st_size
    assert 200_000 < held < 3_000_000
    assert not (archives.FOLDER / "a.zip").exists()
    site.pace = 0.0
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.requests[1:] == [("/a.zip", f"bytes={held}-", '"one"')]


def test_a_full_disk_keeps_the_part(site: Site, archive: Archive) -> None:
    resource = pytest.importorskip("resource")
    limit = 100_000  # bytes that a file of the process can have: the same error as a full disk, in mid-write
    done = subprocess.run(
        script(f"archives.fetch(Archive(name='a.zip', urls={archive.urls}))"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.count("\n")) == (2, 1), done.stderr
    assert "the disk is full: data/archives/a.zip.part keeps what has come" in done.stdout
    assert not (archives.FOLDER / "a.zip").exists()
    assert (archives.FOLDER / "a.zip.part").stat().st_size == limit
    assert archives.fetch(archive).path.read_bytes() == site.files["/a.zip"]
    assert site.ranges_seen() == [None, f"bytes={limit}-"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_disk_that_fills_up_is_gone_on_with_when_there_is_room(site: Site, archive: Archive, disk: Path, chunked: bool) -> None:
    """A real full disk: by another program while the file comes, or by a file of which nobody said how large it is."""
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    Path("data").symlink_to(disk)
    body = site.files["/a.zip"] = zipped(size=800_000 if not chunked else 1_500_000)
    site.chunked, site.pace = chunked, 0.02
    part = archives.FOLDER / "a.zip.part"

    def fill() -> None:
        wait_until(lambda: part.exists() and part.stat().st_size > 100_000)
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    other = threading.Thread(target=fill)
    if not chunked:
        other.start()
    with pytest.raises(UserError, match=r"^the disk is full: data/archives/a.zip.part keeps what has come; make room and run this again"):
        archives.fetch(archive)
    if not chunked:
        other.join()
    held = part.stat().st_size
    assert 100_000 < held < len(body)
    with pytest.raises(UserError, match=r"the disk is full|needs .* MB, and the disk of data/archives has .* free|No space left"):
        archives.fetch(archive)  # still no room: nothing is lost
    assert part.stat().st_size >= held
    (disk / "other").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    assert archives.fetch(archive).path.read_bytes() == body
    assert site.ranges_seen()[0] is None
    assert set(site.ranges_seen()[1:]) >= {f"bytes={held}-"}
    assert None not in site.ranges_seen()[1:]


def test_a_folder_that_cannot_be_written_is_named(archive: Archive) -> None:
    Path("data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write data/archives\S*: "):
        archives.fetch(archive)


def test_a_file_that_does_not_fit_is_not_begun(site: Site, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"a\.zip needs 0\.3 MB, and the disk of data/archives has 0\.0 MB free"):
        archives.fetch(archive)


def test_two_downloads_at_once_make_one(site: Site, archive: Archive) -> None:
    site.pace = 0.05
    call = script(f"print(archives.fetch(Archive(name='a.zip', urls={archive.urls})).sha256)")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    right = hashlib.sha256(site.files["/a.zip"]).hexdigest()
    assert [process.communicate()[0].strip() for process in both] == [right, right]
    assert len(site.requests) == 1
