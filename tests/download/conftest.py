"""A server and an archive on it, for the tests of downloads."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from makers.site import Handler, Site, zipped

from pipeline.download import transfer
from pipeline.download.archives import Archive


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
