"""Archives that tests build: good ones come out whole, hostile and damaged ones leave nothing behind."""

import bz2
import hashlib
import io
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.download import containers, extraction
from pipeline.ground.errors import UserError

ROOT = Path(__file__).parents[2]
NOISE = np.random.default_rng(0).bytes(50_000)


def make_zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as container, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicates
        for name, content in entries:
            container.writestr(name, content)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return entry


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, len(content)
    return entry, content


def make_tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as container:
        for entry, content in entries:
            container.addfile(entry, io.BytesIO(content))
    return path


def left(folder: Path) -> Iterator[Path]:
    """All that lies below a folder, locks aside."""
    return (path for path in folder.rglob("*") if not path.name.endswith(".lock"))


def refused(archive: Path, match: str) -> None:
    """The archive is refused in one line, and nothing of it stays, inside the target or beside it."""
    outside = set(archive.parent.iterdir())
    with pytest.raises(UserError, match=match) as caught:
        extraction.extract(archive, archive.parent / "store" / "out")
    assert "\n" not in str(caught.value)
    assert archive.name in str(caught.value)
    assert list(left(archive.parent / "store")) == []
    assert set(archive.parent.iterdir()) == outside | {archive.parent / "store"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_comes_out_whole_whatever_it_is_called(tmp_path: Path, mode: str) -> None:
    archive = make_tar(tmp_path / "a.dat", member("./", tarfile.DIRTYPE), member("./d/x", content=NOISE), member("d/empty"), mode=mode)
    extraction.verify(archive)
    extraction.extract(archive, tmp_path / "out")
    assert (tmp_path / "out/d/x").read_bytes() == NOISE
    assert (tmp_path / "out/d/empty").read_bytes() == b""


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_comes_out_whole(tmp_path: Path, compression: int) -> None:
    entries = (("top/", b""), ("top/d/x", NOISE), ("windows\\y", b"y"), ("windows\\d\\", b""))
    archive = make_zip(tmp_path / "a", *entries, compression=compression)
    extraction.verify(archive)
    extraction.extract(archive, tmp_path / "out")
    assert (tmp_path / "out/top/d/x").read_bytes() == NOISE
    assert (tmp_path / "out/windows/y").read_bytes() == b"y"
    assert (tmp_path / "out/windows/d").is_dir()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "a/b/..", "C:/evil", "..\\evil", "\\evil"])
def test_a_zip_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    refused(make_zip(tmp_path / "a.zip", ("good", b"1"), (name, b"2")), "leaves the folder")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_tar_cannot_leave_the_folder(tmp_path: Path, name: str, kind: bytes) -> None:
    refused(make_tar(tmp_path / "a.tar", member("good", content=b"1"), member(name, kind, link="good")), "leaves the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("link", ["../evil", "/etc/passwd", "d/../../evil"])
def test_a_link_cannot_leave_the_folder(tmp_path: Path, kind: bytes, link: str) -> None:
    (tmp_path / "evil").write_bytes(b"outside")
    refused(make_tar(tmp_path / "a.tar", member("d/x", content=b"1"), member("l", kind, link)), "leaves the folder")


def test_a_zipped_link_cannot_leave_the_folder(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", (special("l", stat.S_IFLNK | 0o777), b"../../etc")), "the link l leaves the folder")


def test_chains_of_links_cannot_leave_the_folder(tmp_path: Path) -> None:
    """Each link alone seems to stay: e goes up from where d leads to, not from where d is."""
    chain = (member("a/b/x", content=b"1"), member("d", tarfile.SYMTYPE, "a"), member("e", tarfile.SYMTYPE, "d/../.."))
    refused(make_tar(tmp_path / "a.tar", *chain), "the link e leaves")
    late = (member("e", tarfile.SYMTYPE, "d/.."), member("d", tarfile.SYMTYPE, "."))  # e leads outside only when d is there
    refused(make_tar(tmp_path / "b.tar", *late), "the link e leaves")
    refused(make_tar(tmp_path / "c.tar", *late, member("e/new/l", tarfile.SYMTYPE, "x")), "the link e/new/l leaves")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    through = (member("d", tarfile.SYMTYPE, str(tmp_path / "outside")), member("d/evil", content=b"1"))
    refused(make_tar(tmp_path / "a.tar", *through), "twice|leaves the folder")
    assert list((tmp_path / "outside").iterdir()) == []


def test_links_inside_the_folder_work(tmp_path: Path) -> None:
    links = (member("s", tarfile.SYMTYPE, "d/x"), member("h", tarfile.LNKTYPE, "d/x"), member("e/up", tarfile.SYMTYPE, "../d"))
    extraction.extract(make_tar(tmp_path / "a.tar", *links, member("d/x", content=b"1")), tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes() for name in ("s", "h", "e/up/x")] == [b"1"] * 3
    zipped = make_zip(tmp_path / "b.zip", ("d/x", b"1"), (special("l", stat.S_IFLNK | 0o777), b"d/x"))
    extraction.extract(zipped, tmp_path / "out2")
    assert (tmp_path / "out2/l").is_symlink()
    assert (tmp_path / "out2/l").read_bytes() == b"1"


def test_a_hard_link_to_nothing_is_refused(tmp_path: Path) -> None:
    refused(make_tar(tmp_path / "a.tar", member("h", tarfile.LNKTYPE, "gone")), "no file in the archive")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    refused(make_tar(tmp_path / "a.tar", member("good", content=b"1"), member("d", kind)), "d is a device or pipe")


def test_zipped_devices_are_refused(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", (special("d", stat.S_IFCHR | 0o666), b"")), "d is a device or pipe")


@pytest.mark.parametrize("names", [("x", "x"), ("x", "./x"), ("x", "x/y"), ("x/y", "x")])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    refused(make_zip(tmp_path / "a.zip", *((name, b"1") for name in names)), "twice, or is a file and a folder")
    refused(make_tar(tmp_path / "a.tar", *(member(name, content=b"1") for name in names)), "twice, or is a file and a folder")


def test_a_password_is_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("x", b"1"))
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # the flag in the entry's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    archive.write_bytes(content)
    refused(archive, "x is encrypted")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = bytes(3_000_000)
    bombs = [make_zip(tmp_path / "a.zip", ("x", zeros)), make_tar(tmp_path / "a.tgz", member("x", content=zeros), mode="w:gz")]
    for number, bomb in enumerate(bombs):
        extraction.extract(bomb, tmp_path / f"out{number}")  # by its ratio alone it is no bomb
    monkeypatch.setattr(containers, "BOMB_BYTES", 1_000_000)
    for bomb in bombs:
        refused(bomb, "refused as a bomb")
        with pytest.raises(UserError, match="bomb"):
            extraction.verify(bomb)


@pytest.mark.parametrize("end", [False, True])
def test_what_never_ends_is_refused(tmp_path: Path, end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams one behind the other, 45 bytes for 45 MB of zeros: before the first header, or after the last one."""
    monkeypatch.setattr(containers, "BOMB_BYTES", 60_000_000)
    start = make_tar(tmp_path / "x.tar", member("x", content=NOISE)).read_bytes() if end else b""
    bomb = tmp_path / "a.tar.bz2"
    bomb.write_bytes(bz2.compress(start) + bz2.compress(bytes(45_000_000)) * 800)
    assert bomb.stat().st_size < 100_000
    began = time.monotonic()
    refused(bomb, "refused as a bomb")
    assert time.monotonic() - began < 30  # all of it, 36 GB, takes minutes


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 3 << 30
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(tmp_path / "a.tar", "a name of 3221225472 bytes")


def test_a_link_of_megabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", (special("x", stat.S_IFLNK | 0o777), b"y" * 2_000_000)), "the link x names its target in 2000000")


def test_names_of_names_are_damage(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 4
    (tmp_path / "a.tar").write_bytes((entry.tobuf(tarfile.GNU_FORMAT) + b"name".ljust(512, b"\0")) * 2000)
    refused(tmp_path / "a.tar", "damaged")


def test_a_size_that_lies_is_damage(tmp_path: Path) -> None:
    """A directory that promises 1 byte does not get the entry's 50,000 written."""
    archive = make_zip(tmp_path / "a.zip", ("x", NOISE))
    content = bytearray(archive.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 1)
    archive.write_bytes(content)
    refused(archive, "damaged")


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(extraction, "write", lambda *_: pytest.fail("began to write"))
    refused(make_zip(tmp_path / "a.zip", ("x", b"x"), ("y", NOISE)), "more than the disk of .* has free")
    refused(make_tar(tmp_path / "a.tar", member("y", content=NOISE)), "more than the disk of .* has free")


@pytest.mark.parametrize("size", [3, 600, 20_000, -30])
def test_a_truncated_zip_is_called_so(tmp_path: Path, size: int) -> None:
    archive = make_zip(tmp_path / "a.zip", ("x", NOISE), ("y", NOISE))
    archive.write_bytes(archive.read_bytes()[:size])
    refused(archive, "a.zip is truncated .*: delete it and download it again")
    with pytest.raises(UserError, match="is truncated"):
        extraction.verify(archive)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_a_truncated_tar_is_called_so(tmp_path: Path, mode: str, kept: float) -> None:
    archive = make_tar(tmp_path / "a.tar", member("x", content=NOISE), member("y", content=NOISE), mode=mode)
    body = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(body[: int(len(body) * kept)])
    refused(archive, "a.tar is truncated .*: delete it and download it again")


def test_a_tar_that_ends_between_two_members_is_truncated(tmp_path: Path) -> None:
    """tarfile itself takes it for complete."""
    archive = make_tar(tmp_path / "a.tar", member("x", content=NOISE[:512]), member("y", content=NOISE[:512]))
    archive.write_bytes(archive.read_bytes()[:1024])
    refused(archive, "is truncated")


def test_a_damaged_header_in_mid_tar_is_damage(tmp_path: Path) -> None:
    """tarfile itself ends there, without a word, with the files so far."""
    archive = make_tar(tmp_path / "a.tar", member("x", content=NOISE[:512]), member("y", content=NOISE[:512]))
    content = bytearray(archive.read_bytes())
    content[1024:1100] = b"\x55" * 76
    archive.write_bytes(content)
    refused(archive, "is damaged")


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    for archive in (
        make_zip(tmp_path / "a.zip", ("x", NOISE), compression=zipfile.ZIP_STORED),
        make_tar(tmp_path / "a.tgz", member("x", content=NOISE), mode="w:gz"),
        make_tar(tmp_path / "a.tbz2", member("x", content=NOISE), mode="w:bz2"),
        make_tar(tmp_path / "a.txz", member("x", content=NOISE), mode="w:xz"),
    ):
        content = bytearray(archive.read_bytes())
        content[20_000] ^= 16
        archive.write_bytes(content)
        refused(archive, "damaged")


@pytest.mark.parametrize("content", [b"<html>" + b"no " * 1000, b"", b"PK", b"\x1f\x8b", NOISE])
def test_what_is_no_archive_is_called_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "is truncated|is damaged, or no zip or tar")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "gone.zip", "cannot extract .*gone.zip .*No such file")


def test_an_extraction_is_found_again_and_checked(workspace: Path) -> None:
    archive = make_zip(workspace / "a.zip", ("x", b"1"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = extraction.extracted(archive, digest)
    assert folder == extraction.folder_of(digest) == Path("data/store/extracted") / digest[:16]
    assert (folder / "x").read_bytes() == b"1"
    archive.unlink()  # the contents are there
    assert extraction.extracted(archive, digest) == folder
    make_zip(archive, ("x", b"2"))
    assert extraction.extracted(archive, digest) == folder
    with pytest.raises(UserError, match=r"has changed since its download .*run `uv run python -m stages.download`"):
        extraction.extracted(archive, "0" * 64)


def test_a_killed_extraction_is_not_taken_for_complete(workspace: Path) -> None:
    archive = make_zip(workspace / "a.zip", *((f"d/{number}", b"x" * 100) for number in range(12_000)))
    code = "import sys; from pathlib import Path; from pipeline.download import extraction; extraction.extract(Path('a.zip'), Path('out'))"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not Path(".out.partial/d/50").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Path(".out.partial/d/50").exists()
    assert not Path("out").exists()
    extraction.extract(archive, Path("out"))
    assert len(list(Path("out/d").iterdir())) == 12_000
    assert not Path(".out.partial").exists()


def test_a_full_disk_leaves_nothing(workspace: Path) -> None:
    resource = pytest.importorskip("resource")
    make_zip(workspace / "a.zip", ("x", NOISE), ("y", NOISE * 4))
    code = (
        "from pathlib import Path; from pipeline.download import extraction\n"
        "try: extraction.extract(Path('a.zip'), Path('out'))\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("cannot extract a.zip to out: "), done.stderr
    assert sorted(path.name for path in left(workspace)) == ["a.zip"]
