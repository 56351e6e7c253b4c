"""Which figures, runs and pixels are chosen where params.yaml leaves it open."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.project import Project
from PIL import Image

from pipeline.data import prepared
from pipeline.figures import choose, material
from pipeline.figures.material import Shot
from pipeline.figures.table import FIGURES
from pipeline.ground.errors import UserError
from pipeline.settings import config
from pipeline.settings.schema import FIGURES as NAMES


def test_the_telling_pixel_is_the_midst_of_a_small_object() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:19, 20:29] = 1  # the object
    labels[30:32, 5:7] = 2  # a speck
    labels[:, 50:] = 255
    assert material.telling_pixel(labels) == (14, 24)
    labels[:8, :8] = 3  # smaller, but cut off by the image's border
    assert material.telling_pixel(labels) == (14, 24)
    assert material.telling_pixel(np.full((4, 6), 255, np.uint8)) == (2, 3)
    row, column = material.telling_pixel(np.eye(6, dtype=np.uint8))
    assert 0 <= row < 6
    assert 0 <= column < 6


def test_a_pixel_lies_in_the_cell_of_the_map_that_covers_it() -> None:
    pair = prepared.Pair("x", "x", "x", 48, 64)
    shot = Shot(pair, Image.new("RGB", (64, 48)), np.zeros((48, 64), np.uint8), (47, 16), None)
    assert shot.at((12, 16)) == (11, 4)
    assert shot.at((48, 64)) == (47, 16)


def test_the_baseline_is_the_run_most_alike(at: Path) -> None:
    params = config.load()
    by_name = {choice.name: choice for choice in choose.choices(params)[0]}
    for name in ("class-weights", "rates", "relations", "dependencies"):
        assert by_name[name].baseline is not None
        assert by_name[name].baseline.name == "deeplab"
    assert by_name["messages"].baseline is None
    ksac_car = replace(params.methods["car"], name="car", head=params.methods["ksac"].head)
    params = replace(params, methods={**params.methods, "car": ksac_car})
    assert {choice.name: choice.baseline for choice in choose.choices(params)[0]}["relations"].name == "ksac"
    separate = replace(params.methods["ksac"], name="separate", head=replace(params.methods["ksac"].head, options={"shared": False}))
    params = replace(params, methods={**params.methods, "separate": separate}, figures=replace(params.figures, baseline="separate"))
    for settings in (params.figures, replace(params.figures, baseline=None)):  # KSAC's own control, named or not
        by_name = {choice.name: choice for choice in choose.choices(replace(params, figures=settings))[0]}
        assert by_name["rates"].baseline.name == "separate"
    of_itself = replace(params.figures, runs={"rates": ("separate",)})
    by_name = {choice.name: choice for choice in choose.choices(replace(params, figures=of_itself))[0]}
    assert by_name["rates"].baseline.name == "deeplab"


def test_names_are_the_tables_and_reading_settings_needs_neither_torch_nor_matplotlib() -> None:
    assert tuple(FIGURES) == NAMES
    assert all((figure.of_image is None) != (figure.of_sample is None) for figure in FIGURES.values())
    code = "import sys, pipeline.settings.config; print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True).stdout == "[]\n"


def test_params_without_the_section_have_its_defaults(there: Project) -> None:
    del there.params["figures"]
    there.write()
    figures = config.load().figures
    assert (figures.images, figures.pixel, figures.sample, dict(figures.runs)) == (2, None, 100, {})
    there.params["figures"] = {"runs": {"flow": "decoupled"}}
    there.write()
    assert config.load().figures.runs["flow"] == ("decoupled",)
    with pytest.raises(UserError, match=r"params.yaml: figures must be a mapping"):
        config.read_figures(config.Section({"figures": [1]}, Path("params.yaml")), {})
