"""Downloads behind a login, against a real server on this machine."""

import http.server
import io
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.datasets.cityscapes import ACCOUNT, Cityscapes
from pipeline.download import archives
from pipeline.download.accounts import Account
from pipeline.download.archives import Archive
from pipeline.ground.errors import UserError

USER, SECRET = "a user", "pass&word=1"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("leftImg8bit/train/a.txt", "x" * 5000)
    return buffer.getvalue()


class Site(http.server.ThreadingHTTPServer):
    """Gives /file only to whoever sent the right form to /login and shows the cookie that he got there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str]] = []
        self.refuse = 200  # the status of a login that was refused: most sites show the form again

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.seen.append((self.path, str(self.headers)))
        right = {"username": [USER], "password": [SECRET], "submit": ["Login"]}
        if urllib.parse.parse_qs(sent) == right:
            self.say(302, b"", Location="/welcome", Set_Cookie="session=open; Path=/")
        else:
            self.say(self.server.refuse, b"<html>the form again</html>", Content_Type="text/html")

    def do_GET(self) -> None:
        self.server.seen.append((self.path, str(self.headers)))
        if "session=open" not in (self.headers["Cookie"] or ""):
            self.say(200, b"<html>please log in</html>", Content_Type="text/html")
        elif self.path.startswith("/file"):
            self.say(200, zipped(), Content_Type="application/zip")
        else:
            self.say(200, b"welcome", Content_Type="text/html")


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def archive(site: Site, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setenv("A_USERNAME", USER)
    monkeypatch.setenv("A_PASSWORD", SECRET)
    account = Account(f"{site.address}/login", "A_USERNAME", "A_PASSWORD", {"submit": "Login"})
    return Archive(name="a.zip", urls=(f"{site.address}/file?id=3",), note="1 MB", gate="set A_USERNAME and A_PASSWORD", account=account)


def test_a_login_opens_the_file(site: Site, archive: Archive, capfd: pytest.CaptureFixture[str]) -> None:
    assert archives.fetch(archive).path.read_bytes() == zipped()
    written = "".join(path.read_text(errors="replace") for path in archives.FOLDER.rglob("*") if path.is_file())
    said = "".join(capfd.readouterr()) + written + "".join(path + headers for path, headers in site.seen)
    for secret in (SECRET, urllib.parse.quote_plus(SECRET), urllib.parse.quote(SECRET)):
        assert secret not in said


@pytest.mark.parametrize("status", [200, 403, 500])
def test_a_refused_login_is_one_line_without_the_secret(site: Site, archive: Archive, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", "wrong")
    site.refuse = status
    with pytest.raises(UserError, match=r"log in|login") as found:
        archives.fetch(archive)
    assert "wrong" not in str(found.value)
    assert "\n" not in str(found.value)


def test_without_an_account_nothing_is_asked_and_the_way_is_told(site: Site, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_PASSWORD")
    with pytest.raises(
        UserError, match=r"a\.zip \(1 MB\) is not in .*: set A_USERNAME and A_PASSWORD; put it as downloaded into data/archives"
    ):
        archives.fetch(archive)
    assert site.seen == []


def test_a_site_that_is_away_is_one_line(site: Site, archive: Archive) -> None:
    site.shutdown()
    site.server_close()
    with pytest.raises(UserError, match=r"login at .* failed"):
        archives.fetch(archive)


def test_cityscapes_logs_in_where_its_files_are() -> None:
    assert ACCOUNT.login.startswith("https://www.cityscapes-dataset.com/")
    assert (ACCOUNT.username, ACCOUNT.password) == ("CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD")
    assert all(archive.account is ACCOUNT and archive.urls[0].startswith("https://") for archive in Cityscapes.archives)
