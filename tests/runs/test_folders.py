"""Finished runs are found, taken over and collected only where they are whole."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.runs import fingerprint, folders
from pipeline.settings import config as configs
from pipeline.settings.schema import Config, Inputs

PARAMS = Path(__file__).parents[2] / "params.yaml"


def stamped(code: str) -> Config:
    config = next(iter(configs.load(PARAMS).methods.values()))
    inputs = Inputs(manifests={"superpixels": "0"}, code={"models/x.py": code}, versions={"torch": "1"}, parent=None)
    return replace(configs.with_seed(config, 0), inputs=inputs)


def finish(config: Config, what: str) -> Path:
    folder = folders.finished_folder(config)
    folders.write_settings(folder, config)
    torch.save({"weights": what}, folder / "seed-0.pt")
    (folder / "seed-0.json").write_text(json.dumps({"what": what}))
    (folder / "seed-0.csv").write_text("step\n")
    return folder


def aged(folder: Path, seconds: int) -> None:
    os.utime(folder / "settings.json", (seconds, seconds))


@pytest.mark.parametrize(
    ("name", "content"), [("seed-0.pt", b""), ("seed-0.pt", b"x" * 999), ("seed-0.json", b'{"a":'), ("seed-0.csv", None)]
)
def test_a_damaged_one_is_not_finished(workspace: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None) -> None:
    config = stamped("a")
    folder = finish(config, "a")
    assert folders.is_finished(config)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert not folders.is_finished(config)
    folders.adopt_or_warn(config)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "seed-0.pt or a file beside it is missing or damaged" in said
    finish(config, "again")
    assert folders.is_finished(config)


def test_a_truncated_one_is_not_finished(workspace: Path) -> None:
    path = finish(stamped("a"), "a") / "seed-0.pt"
    path.write_bytes(path.read_bytes()[:-40])
    assert not folders.is_finished(stamped("a"))


def test_an_attempt_without_files_hides_none_that_has_them(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESUME_ACROSS_CODE", "1")
    now, usable, damaged, empty = stamped("now"), stamped("usable"), stamped("damaged"), stamped("empty")
    steps = folders.checkpoint_folder(usable)
    folders.write_settings(steps.parent, usable)
    steps.mkdir()
    torch.save({"step": 4}, steps / "step-4.pt")
    (steps / "step-8.pt").write_bytes(b"half")
    (finish(damaged, "damaged") / "seed-0.pt").write_bytes(b"half")
    folders.write_settings(folders.checkpoint_folder(empty).parent, empty)
    for age, folder in enumerate((folders.checkpoint_folder(empty).parent, folders.finished_folder(damaged), steps.parent)):
        aged(folder, 1_000_000 - age)
    folders.checkpoint_folder(now).mkdir(parents=True)  # emptied by hand
    folders.adopt_or_warn(now)
    assert f"takes over {steps.parent}" in capsys.readouterr().err
    assert [path.name for path in folders.checkpoint_folder(now).iterdir()] == ["step-4.pt"]
    record = json.loads((folders.checkpoint_folder(now).parent / "settings.json").read_text())
    assert record["adopted"]["fingerprint"] == fingerprint.fingerprint(usable)


def test_with_nothing_to_take_over_it_starts_afresh(workspace: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RESUME_ACROSS_CODE", "1")
    empty, now = stamped("empty"), stamped("now")
    folders.write_settings(folders.checkpoint_folder(empty).parent, empty)
    folders.adopt_or_warn(now)
    assert "starts afresh" in capsys.readouterr().err
    assert not folders.finished_folder(now).exists()
    assert not folders.checkpoint_folder(now).exists()


def test_two_that_collect_at_once_both_end_well(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stamped("a")
    finished = finish(config, "a")
    real, meet = folders.copy, threading.Barrier(2)
    faults: list[BaseException] = []

    def meeting(source: Path, goal: Path) -> None:
        """Without a lock both are in here at once, and one removes what the other is writing."""
        real(source, goal)
        try:
            meet.wait(0.3)
        except threading.BrokenBarrierError:
            return

    def collect() -> None:
        try:
            folders.collect(config, [config])
        except BaseException as error:
            faults.append(error)

    monkeypatch.setattr(folders, "copy", meeting)
    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    goal = config.folder / "weights"
    assert {path.name: path.read_bytes() for path in goal.iterdir()} == {path.name: path.read_bytes() for path in finished.glob("seed-0.*")}
    assert not list(config.folder.glob(".weights.*[wd]"))
