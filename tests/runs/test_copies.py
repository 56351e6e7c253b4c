"""Copies of checkpoints on other storage: they never stop a training, and one that is not whole is never gone on from."""

import errno
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from makers.project import Project

from cluster import launch
from pipeline.ground import stopping
from pipeline.ground.errors import UserError
from pipeline.ground.stopping import StoppedError
from pipeline.runs import copies, folders
from pipeline.runs.copies import Copies
from pipeline.runs.trainer import train
from pipeline.settings.profiles import Launch, Ray
from pipeline.training import checkpoint


@pytest.fixture(params=["folder", "file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Storage of each kind that needs no server."""
    kinds = {"folder": str(tmp_path / "away"), "file": f"file://{tmp_path}/away", "memory": "memory://away"}
    yield kinds[request.param]
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def names(address: str) -> list[str]:
    system, path = fsspec.core.url_to_fs(address)
    return sorted(name.rpartition("/")[2] for name in system.find(path))


def saved(folder: Path, step: int) -> Path:
    checkpoint.save(folder, step, {"step": step}, keep=9)
    return checkpoint.path_of(folder, step)


def sent(address: str, folder: Path, *steps: int, keep: int = 9) -> Copies:
    made = Copies(address, keep)
    for step in steps:
        made.send(step, saved(folder, step))
        made.finish(60)
    return made


def test_the_last_ones_come_back_byte_for_byte(address: str, tmp_path: Path) -> None:
    made = sent(address, tmp_path / "here", 4, 8, 12, keep=2)
    assert names(address) == ["step-12.json", "step-12.pt", "step-8.json", "step-8.pt"]
    assert made.fetch(tmp_path / "there", None)
    assert names(str(tmp_path / "there")) == ["step-12.pt"]
    assert (tmp_path / "there/step-12.pt").read_bytes() == (tmp_path / "here/step-12.pt").read_bytes()
    assert made.fetch(tmp_path / "older", 8)
    assert not made.fetch(tmp_path / "as-new", 12)
    assert not Copies(f"{address}/nothing", 2).fetch(tmp_path / "nothing", None)


def truncate(system: Any, path: str) -> None:
    system.pipe_file(f"{path}/step-8.pt", system.cat_file(f"{path}/step-8.pt")[:-1])


def lose_digest(system: Any, path: str) -> None:
    system.rm_file(f"{path}/step-8.json")


def truncate_digest(system: Any, path: str) -> None:
    system.pipe_file(f"{path}/step-8.json", b'{"sha')


def lose_data(system: Any, path: str) -> None:
    system.rm_file(f"{path}/step-8.pt")


@pytest.mark.parametrize("damage", [truncate, lose_digest, truncate_digest, lose_data])
def test_what_is_not_whole_is_passed_over(address: str, tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = sent(address, tmp_path / "here", 4, 8)
    damage(*fsspec.core.url_to_fs(address))
    assert made.fetch(tmp_path / "there", None)
    assert names(str(tmp_path / "there")) == ["step-4.pt"]
    assert checkpoint.latest(tmp_path / "there") == (4, {"step": 4})
    told = capsys.readouterr().err
    assert ("the copy of step 8 at" in told) == (damage is not lose_digest)
    assert "step 4 comes from" in told
    sent(address, tmp_path / "here", 8)
    assert made.fetch(tmp_path / "again", None)
    assert names(str(tmp_path / "again")) == ["step-8.pt"]


def test_a_slow_one_holds_nobody_up_and_the_newest_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, stream = threading.Event(), threading.Event(), copies.stream

    def slowly(source: Any, goal: Any) -> str:
        begun.set()
        assert go.wait(60)
        return stream(source, goal)

    monkeypatch.setattr(copies, "stream", slowly)
    made = Copies(str(tmp_path / "away"), 2)
    made.send(1, saved(tmp_path / "here", 1))
    assert begun.wait(60)
    for step in (2, 3, 4):  # returns though the first is on its way
        made.send(step, saved(tmp_path / "here", step))
    made.finish(0.01)
    assert [name for name in names(str(tmp_path / "away")) if name.endswith("json")] == []
    go.set()
    made.finish(60)
    assert names(str(tmp_path / "away")) == ["step-1.json", "step-1.pt", "step-4.json", "step-4.pt"]


def test_storage_that_breaks_off_is_passed_over(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made = sent(address, tmp_path / "here", 4, 8)
    system, opened = made.place[0], made.place[0].open

    def broken(size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    def breaking(path: str, mode: str, **options: Any) -> Any:
        file = opened(path, mode, **options)
        if path.endswith("step-8.pt"):
            file.read = broken
        return file

    monkeypatch.setattr(system, "open", breaking)
    assert made.fetch(tmp_path / "there", None)
    assert names(str(tmp_path / "there")) == ["step-4.pt"]
    assert "step 8 at" in capsys.readouterr().err


def full(source: Any, goal: Any) -> str:
    goal.write(source.read(100))
    raise OSError(errno.ENOSPC, "No space left on device")


def test_one_that_fails_is_told_and_the_next_one_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made = sent(str(tmp_path / "away"), tmp_path / "here", 4)
    with monkeypatch.context() as broken:
        broken.setattr(copies, "stream", full)
        made.send(8, saved(tmp_path / "here", 8))
        made.finish(60)
    assert "step-8.pt could not be copied to" in capsys.readouterr().err
    assert made.fetch(tmp_path / "there", None)
    assert checkpoint.steps(tmp_path / "there") == [4]
    made.send(12, saved(tmp_path / "here", 12))
    made.finish(60)
    assert made.steps() == [4, 12]
    assert "step-8.pt" not in names(str(tmp_path / "away"))


def test_storage_that_is_away_costs_no_training_that_has_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "away").write_text("no folder")
    made = Copies(str(tmp_path / "away/here"), 2)
    with pytest.raises(UserError, match=r"^cannot read the checkpoints at .*run it again when it answers$"):
        made.fetch(tmp_path / "there", None)
    assert not made.fetch(tmp_path / "there", 4)
    assert "going on from step 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("params.yaml/here", "Not a directory"),
        ("s4://bucket/runs", "Protocol not known: s4"),
        ("file:///proc/here", "No such file"),
        ("s3://bucket/runs", "fsspec needs s3fs for s3://: uv pip install s3fs=="),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_starts(project: Project, capsys: Any, wrong: str, words: str) -> None:
    project.profile["checkpoints"] = wrong
    assert project.stage("train", "fcn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write checkpoints {wrong}: ")
    assert words in line


def test_rays_storage_holds_them_too() -> None:
    assert Launch(name="x", backend="local").copies is None
    assert Launch(name="x", backend="ray", ray=Ray(storage="s3://b/x/")).copies == "s3://b/x/checkpoints"
    assert Launch(name="x", backend="ray", ray=Ray(storage="s3://b/x"), checkpoints="/y").copies == "/y"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_goes_on_where_its_disk_is_lost(project: Project, tmp_path: Path, processes: int) -> None:
    """Stopped after six steps, its folder of runs is deleted; the rest is trained elsewhere to the same weights."""
    project.profile |= {"processes": processes, "checkpoints": str(tmp_path / "away"), "keep": 1}
    config = project.config("fcn")
    if processes == 1:
        with pytest.raises(StoppedError):
            train(config, lambda row: stopping.asked.set() if row["step"] == 6 else None)
        stopping.asked.clear()
    else:
        launch(stop_at_six, config)
    (copy,) = tmp_path.glob("away/fcn/*/seed-0/*.pt")
    assert copy.name == "step-6.pt"
    assert set(json.loads(copy.with_suffix(".json").read_text())) == {"sha256"}
    shutil.rmtree("runs")
    launch(train, config)
    assert "training from step 6 to 12" in Path("runs/fcn/seed-0/log.txt").read_text()
    resumed = (folders.finished_folder(config) / "seed-0.pt").read_bytes()
    shutil.rmtree("runs")
    shutil.rmtree(tmp_path / "away")
    launch(train, config)
    assert "training from step 0 to 12" in Path("runs/fcn/seed-0/log.txt").read_text()
    assert (folders.finished_folder(config) / "seed-0.pt").read_bytes() == resumed
    assert len(torch.load(folders.finished_folder(config) / "seed-0.pt", weights_only=True)["weights"]) > 0


def stop_at_six(config: Any) -> None:
    try:
        train(config, lambda row: stopping.asked.set() if row["step"] == 6 else None)
    except StoppedError:
        return
    raise AssertionError("it was not stopped")
