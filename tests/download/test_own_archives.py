"""Archives in a user's own folder or at a user's own address (DATA_ARCHIVES)."""

import hashlib
import os
from pathlib import Path

import pytest
from makers.site import Site, published, zipped

from pipeline.download import archives
from pipeline.download.archives import Archive
from pipeline.ground import digests
from pipeline.ground.errors import UserError


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
