"""What several test files share."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from makers.project import Project


@pytest.fixture
def shared() -> Path:
    """A folder with real data and reference material (`SHARED_DATA`, else ../shared); skips where there is none."""
    folder = Path(os.environ.get("SHARED_DATA") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} does not exist (set SHARED_DATA)")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one, with a store of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATA_STORE", "DATA_ARCHIVES", "LAUNCH", "RESUME_ACROSS_CODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def disk(workspace: Path) -> Iterator[Path]:
    """A disk of its own; skips where none can be mounted."""
    folder = workspace / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU are skipped, and say so, where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(scope="session")
def prepared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data prepared, to be copied."""
    project = Project(tmp_path_factory.mktemp("prepared"))
    for stage in (("download",), ("prepare",), ("superpixels", "none"), ("superpixels", "slic")):
        assert project.stage(*stage) == 0
    return project.folder


@pytest.fixture
def project(prepared_project: Path, workspace: Path) -> Project:
    """A prepared tiny project as the current folder."""
    shutil.copytree(prepared_project, workspace, dirs_exist_ok=True)
    project = Project(workspace)
    project.write()
    return project


@pytest.fixture(scope="session")
def trained(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with both methods trained for four steps, and evaluated: to be predicted and exported from, not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared_project, folder, dirs_exist_ok=True)
    project = Project(folder)
    project.params["train"]["iterations"] = 4
    for name in project.params["methods"]:
        assert project.stage("train", name) == 0
        assert project.stage("evaluate", name) == 0
    return folder


@pytest.fixture(scope="session")
def two_processes(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny project that two processes of this machine, of one thread each, have trained: what every launcher must give, bit for bit."""
    folder = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(prepared_project, folder)
    project = Project(folder)
    project.profile["processes"] = 2
    assert project.stage("train", "fcn") == 0
    return project
