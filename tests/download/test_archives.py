"""A downloaded archive is whole, checked by what is published or was recorded, and not downloaded again."""

import hashlib

import pytest
from makers.site import Site, published, zipped

from pipeline.download import archives
from pipeline.download.archives import Archive
from pipeline.ground import digests
from pipeline.ground.errors import UserError


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


def test_a_file_of_another_size_is_not_even_begun(site: Site, archive: Archive) -> None:
    with pytest.raises(UserError, match=r"offers \d+ bytes, and the file has 10"):
        archives.fetch(Archive(name="a.zip", urls=archive.urls, size=10))
    assert not list(archives.FOLDER.glob("a.zip*"))


def test_an_end_that_nobody_announced_is_still_seen(site: Site, archive: Archive) -> None:
    site.announce, site.drop_after = False, [200_000]
    with pytest.raises(UserError, match="truncated"):
        archives.fetch(archive)
    assert not (archives.FOLDER / "a.zip").exists()


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
