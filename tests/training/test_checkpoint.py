"""Checkpoints: the last good ones stay, and what damaged files and killed writers left behind goes."""

import threading
from pathlib import Path

import pytest

from pipeline.ground.errors import UserError
from pipeline.training import checkpoint


def save(folder: Path, step: int, keep: int = 2) -> None:
    checkpoint.save(folder, step, {"step": step}, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-10.pt", "step-11.pt"]
    assert checkpoint.latest(tmp_path) == (11, {"step": 11})
    assert checkpoint.latest(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"PK", b"no checkpoint at all", b"\x80\x02K\x01."])
def test_a_damaged_newest_does_not_cost_the_good_one(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 4)
    (tmp_path / "step-8.pt").write_bytes(content)
    assert checkpoint.latest(tmp_path) == (4, {"step": 4})
    assert capsys.readouterr().err.count("step-8.pt is damaged") == 1
    assert names(tmp_path) == ["step-4.pt", "step-8.pt.damaged"]
    assert checkpoint.latest(tmp_path) == (4, {"step": 4})
    assert capsys.readouterr().err == ""
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step-5.pt"]


def test_a_step_ahead_of_the_writer_takes_no_place(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step, keep=3)
    damage(tmp_path / "step-12.pt")
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step-5.pt"]


def test_remains_of_killed_writers_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".step-3.pt.elsewhere.17.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("a user's")
    save(tmp_path, 4)
    assert names(tmp_path) == ["notes.txt", "step-4.pt"]


def test_a_failed_save_keeps_what_was_there(tmp_path: Path) -> None:
    save(tmp_path, 4, keep=1)
    with pytest.raises(AttributeError, match="local object"):
        checkpoint.save(tmp_path, 5, {"unpicklable": lambda: None}, 1)
    assert names(tmp_path) == ["step-4.pt"]


def test_what_rank_0_sees_is_waited_for_and_then_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = threading.Timer(0.5, save, (tmp_path, 4))  # a shared disk shows a file to another node late
    thread.start()
    assert checkpoint.read(tmp_path, 4) == {"step": 4}
    thread.join()
    monkeypatch.setattr(checkpoint, "SEEN", 0.0)
    with pytest.raises(
        UserError, match=r"step-8.pt cannot be read on .* \(FileNotFoundError\): do all nodes share the project's folder\?$"
    ):
        checkpoint.read(tmp_path, 8)
