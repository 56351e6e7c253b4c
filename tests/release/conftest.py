"""The trained project and its stage that predicts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from makers.project import Project


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained project as the current folder."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return trained


@pytest.fixture
def predict(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """What `python -m stages.predict` does."""
    made = Project(project)
    made.params["train"]["iterations"] = 4

    def command(*arguments: object) -> int:
        try:
            return made.stage("predict", *map(str, arguments))
        except SystemExit as ended:
            return int(ended.code or 0)

    return command
