"""Downloads that are killed, meet a full disk or one another."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from makers.site import Site, zipped

from pipeline.download import archives, transfer
from pipeline.download.archives import Archive
from pipeline.ground.errors import UserError

ROOT = Path(__file__).parents[2]


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
