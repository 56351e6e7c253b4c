"""A download goes on where another one stopped, and nothing of another file is glued on."""

import json

import pytest
from makers.site import Site, leave_part, published

from pipeline.download import archives, transfer
from pipeline.download.archives import Archive
from pipeline.ground.errors import UserError


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
