"""Servers that break off, are silent or refuse: what is tried again, and what is told."""

from pathlib import Path

import pytest
from makers.site import Site, zipped

from pipeline.download import archives, transfer
from pipeline.download.archives import Archive
from pipeline.ground.errors import UserError


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
