"""A project with its report, and a browser that visits it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import synthetic
from makers.page import CLASSES, IMAGES, METHODS, Visit

from pipeline.data import prepared
from pipeline.evaluation import record
from pipeline.ground import files
from pipeline.report import write as report
from pipeline.settings import config

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser; skips where there is none, unless REQUIRE_BROWSER=1."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"there is no browser ({', '.join(BROWSERS)}) on the PATH"
        pytest.fail(reason) if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visit]:
    """Visits that end without a complaint of the page and without a request."""
    visits = Visit(chromium)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.said == []
    assert {url for url in visits.asked if not url.endswith("/report/index.html")} == set()


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods with two seeds, six classes, one of which is nowhere, and fourteen images: the project with its report."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("DATA_STORE", "LAUNCH"):
            patch.delenv(name, raising=False)
        synthetic.project(METHODS, CLASSES[:-1], IMAGES, seeds=2)
        absent(CLASSES)
        report.write(config.load())
    return folder


@pytest.fixture
def project(reported: Path, workspace: Path) -> Path:
    """A copy of it as the current folder."""
    shutil.copytree(reported, workspace, dirs_exist_ok=True)
    return workspace


def absent(classes: tuple[str, ...]) -> None:
    """Add the last class, which neither labels nor predictions have."""
    now = prepared.read()
    colours = (*now.palette, (1, 2, 3))
    prepared.write(prepared.Prepared(now.dataset, classes, colours, now.splits))
    for name in METHODS:
        path = Path(f"results/{name}/images.npz")
        old = record.read(path, len(classes) - 1, "")
        assert old is not None
        wider = [np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 1)]) for array in (old.hits_SPNK, old.unions_SPNK, old.labelled_NK)]
        confusion = np.pad(old.confusion_SPKK, [(0, 0), (0, 0), (0, 1), (0, 1)])
        record.write(path, record.Record(old.names, confusion, *wider, old.maps, old.about))
        results = json.loads(Path(f"results/{name}.json").read_text())
        for values in (results, *results["per_seed"]):
            for protocol in ("single_scale", "multi_scale_flip"):
                values[protocol]["iou"][classes[-1]] = None
        files.write_json(Path(f"results/{name}.json"), results)
