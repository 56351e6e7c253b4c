"""Sending what is stale: it waits for another dvc, and names what it cannot bring up to date."""

from pathlib import Path

import pytest
from makers.project import Project

from pipeline.ground.errors import UserError
from pipeline.settings import config
from pipeline.settings.schema import Params
from stages import submit

LOCKED = """ERROR: failed to reproduce 'prepare': '/a/data/prepared.json' is busy, it is being blocked by:
  (PID 3945): dvc repro train

If there are no processes with such PIDs, you can manually remove '/a/.dvc/tmp/rwlock' and try again.
"""


@pytest.fixture
def params(workspace: Path) -> Params:
    (workspace / ".dvc").mkdir()
    project = Project(workspace)
    project.write()
    return config.load()


def test_it_waits_while_another_dvc_is_at_work_and_says_so_once(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, commands = [(255, LOCKED), (255, LOCKED), (0, "")], []
    monkeypatch.setattr(submit, "AGAIN", 0.01)
    monkeypatch.setattr(submit, "shown", lambda command: commands.append(command) or answers.pop(0))
    submit.bring_up_to_date(params)
    assert capsys.readouterr().err == "another dvc is at work here (process 3945): waiting for it\n"
    assert [command[2:] for command in commands] == [["dvc", "repro", "prepare", "superpixels@none", "superpixels@slic"]] * 3


def test_what_dvc_refuses_is_named(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "shown", lambda command: (255, "ERROR: something else"))
    with pytest.raises(UserError, match="`uv run dvc repro prepare superpixels@none superpixels@slic` says why"):
        submit.bring_up_to_date(params)


def test_a_lock_is_not_passed_on_and_other_lines_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "said").write_text("Running stage\n" + LOCKED)
    assert submit.shown(["cat", str(tmp_path / "said")]) == (0, "Running stage\n" + LOCKED)
    assert capfd.readouterr().err == "Running stage\n"
