"""A project with a run of every method, for the tests of figures."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from makers.figure_runs import METHODS, save_weights
from makers.project import TINY, Project


@pytest.fixture(scope="session")
def finished(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared project with a run of every method, whose weights are as they were drawn."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared_project, folder, dirs_exist_ok=True)
    params = {**json.loads(json.dumps(TINY)), "methods": METHODS, "evaluations": {"deeplab": {"of": "deeplab"}}}
    Project(folder, params).write()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in METHODS:
            save_weights(Project(folder, params), name)
    return folder


@pytest.fixture
def there(finished: Path, workspace: Path) -> Project:
    """The finished project as the current folder, with data and weights of its own."""
    shutil.copytree(finished, workspace, dirs_exist_ok=True)
    return Project(workspace, yaml.safe_load((workspace / "params.yaml").read_text()))


@pytest.fixture
def at(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished project as the current folder; nothing may be written into it."""
    monkeypatch.delenv("DATA_STORE", raising=False)
    monkeypatch.chdir(finished)
    return finished
