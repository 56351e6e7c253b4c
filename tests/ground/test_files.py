"""Files are whole or absent, and a lock names its holder and ends with it."""

import errno
import io
import multiprocessing
import multiprocessing.queues
import multiprocessing.synchronize
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ground import files
from pipeline.ground.errors import UserError
from stages.command import run

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["timm", "pipeline.runs.trainer", "pipeline.evaluation.evaluate"])  # the server is every test file's


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    files.write_json(path, {"b": 1, "a": [1.5, None]})
    old = path.read_bytes()
    with pytest.raises(RuntimeError, match="midway"), files.replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError("midway")
    assert path.read_bytes() == old
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, float("nan"))
    assert path.read_bytes() == old


def test_a_published_hard_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    path, cached = tmp_path / "x", tmp_path / "cache"
    files.write_bytes(path, b"old")
    os.link(path, cached)
    files.write_bytes(path, b"new")
    assert (path.read_bytes(), cached.read_bytes()) == (b"new", b"old")


def limited(bytes_: int) -> None:
    """Let no file of this process grow beyond that many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


def write_more_than_allowed(path: Path) -> None:
    limited(1000)
    files.write_bytes(path, b"x" * 5000)


def save_more_than_allowed(path: Path) -> None:
    import torch

    limited(1 << 20)
    with files.replacing(path) as file:
        torch.save({"weights": torch.zeros(1 << 20)}, file)


def become_nobody() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)


def write_as_nobody(path: Path) -> None:
    become_nobody()
    files.write_bytes(path, b"x")


def lock_as_nobody(path: Path) -> None:
    become_nobody()
    with files.locked(path, "x"):
        pass


def read_as_nobody(path: Path) -> None:
    become_nobody()
    files.read_json(path, "do this")


def told(action: Callable[[Path], None], path: Path, words: multiprocessing.queues.SimpleQueue) -> None:
    try:
        action(path)
    except UserError as error:
        words.put(str(error))
    except BaseException as error:
        words.put(repr(error))
    else:
        words.put("nothing")


def in_a_child(action: Callable[[Path], None], path: Path) -> str:
    """The UserError's words of an action that changes its own process."""
    words = FORK.SimpleQueue()
    process = FORK.Process(target=told, args=(action, path, words))
    process.start()
    process.join()
    assert process.exitcode == 0
    return words.get()


@pytest.mark.parametrize("action", [write_more_than_allowed, save_more_than_allowed])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_half_file(tmp_path: Path, action: Callable[[Path], None]) -> None:
    assert in_a_child(action, tmp_path / "x") == f"cannot write {tmp_path / 'x'}: File too large"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (write_as_nobody, "cannot write {}: Permission denied"),
        (lock_as_nobody, "cannot write {}: Permission denied"),
        (read_as_nobody, "cannot read {}: Permission denied"),
    ],
)
def test_a_folder_of_somebody_else_is_one_line(tmp_path: Path, action: Callable[[Path], None], words: str) -> None:
    (tmp_path / "x").write_text("{}")
    (tmp_path / "x").chmod(0o400 if os.getuid() == 0 else 0)
    tmp_path.chmod(0o500)
    try:
        assert in_a_child(action, tmp_path / "x") == words.format(tmp_path / "x")
    finally:
        tmp_path.chmod(0o700)


class Filling(io.RawIOBase):
    """A file on a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("room", [0, 1000, 2_000_000])
def test_a_disk_that_fills_while_torch_saves_is_one_line(tmp_path: Path, room: int) -> None:
    import torch

    with pytest.raises(UserError, match=r"^cannot write .*x: No space left on device$"), files.replacing(tmp_path / "x"):
        torch.save({"weights": torch.zeros(1 << 20)}, Filling(room))
    assert list(tmp_path.iterdir()) == []


def test_a_users_mistake_while_writing_stays_that(tmp_path: Path) -> None:
    def mistaken() -> None:
        try:
            raise PermissionError(errno.EACCES, "Permission denied")
        except OSError:
            raise UserError("the picture is damaged")  # noqa: B904

    with pytest.raises(UserError, match=r"^the picture is damaged$"), files.replacing(tmp_path / "x"):
        mistaken()
    with pytest.raises(RuntimeError, match="shapes differ"), files.replacing(tmp_path / "x"):
        raise RuntimeError("shapes differ")


def test_a_path_of_the_wrong_kind_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, reason in ((tmp_path / "file" / "x", "(Not a directory|File exists)"), (tmp_path / "folder", "Is a directory")):
        with pytest.raises(UserError, match=f"cannot write {path}: {reason}"):
            files.write_bytes(path, b"")
        with pytest.raises(UserError, match=f"cannot write {path}: {reason}"), files.locked(path, "x"):
            pass
    if sys.platform == "linux":
        with pytest.raises(UserError, match=r"^cannot write /proc/new/x: No such file or directory$"):
            files.write_bytes(Path("/proc/new/x"), b"")
    with pytest.raises(UserError, match=f"cannot read {tmp_path / 'folder'}: Is a directory"):
        files.read_json(tmp_path / "folder", "do this")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def out_of_gpu_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")


def disk_error() -> None:
    Path("/dev/null/x").read_bytes()


def fault() -> None:
    raise OSError(errno.ENOENT, "No such file", "x")


def test_a_command_says_in_one_line_what_can_be_mended(capsys: pytest.CaptureFixture[str]) -> None:
    for main, words in ((out_of_gpu_memory, "out of GPU memory: .*train.accumulate"), (disk_error, "/dev/null/x: Not a directory")):
        assert run(main) == 2
        assert re.fullmatch(f"error: .*{words}.*\n", capsys.readouterr().err)
    with pytest.raises(FileNotFoundError):
        run(fault)


def test_a_full_disk_and_a_folder_that_may_not_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"):
        files.write_bytes(tmp_path / "x", b"content")
    assert list(tmp_path.iterdir()) == []


def test_reading_says_what_is_wrong_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json does not exist: do this"):
        files.read_json(tmp_path / "x.json", "do this")
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"x\.json is damaged .*: do this"):
        files.read_json(tmp_path / "x.json", "do this")


def hold(path: Path, ready: multiprocessing.synchronize.Event, go_on: multiprocessing.synchronize.Event) -> None:
    with files.locked(path, "the run"):
        ready.set()
        go_on.wait()


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    ready, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "lock", ready, go_on))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(UserError, match=f"the run is already being written by process {process.pid} on "),
        files.locked(tmp_path / "lock", "the run"),
    ):
        pass
    process.kill()
    process.join()
    with files.locked(tmp_path / "lock", "the run"):
        pass
