"""The stage that draws the papers' figures: all of them, some, and those of odd sizes and options."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.figure_runs import save_weights
from makers.project import Project
from makers.stored import put_pair, textured
from PIL import Image

from pipeline.data import prepared
from pipeline.settings.schema import FIGURES as NAMES


def test_all_figures_are_made_listed_and_made_alike_again(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert there.stage("figures") == 0
    folder = there.folder / "figures"
    index = (folder / "index.md").read_text()
    pngs = sorted(folder.glob("*.png"))
    assert {name for name in NAMES if any(png.name.startswith(f"{name}-") for png in pngs)} == set(NAMES)
    for png in pngs:
        with Image.open(png) as image:
            image.load()
            assert min(image.size) > 300
        assert f"({png.name})" in index
        assert ET.parse(png.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert "E-CRF (ICLR 2023), Fig. 4" in index
    assert "left out" not in capsys.readouterr().out
    assert sorted(path.stem for path in folder.glob("*.svg")) == [png.stem for png in pngs]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "flow-gone-image.png").write_bytes(b"stale")
    (folder / "own.txt").write_text("not ours")
    (folder / "flows.png").write_bytes(b"not ours")
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "ecrf")}
    assert there.stage("figures") == 0
    left = {path.name for path in folder.iterdir()}
    others = {"index.md", "own.txt", "flows.png"}
    assert left == {name for name in before if name.startswith(("class-weights", "messages"))} | others
    assert all((folder / name).read_bytes() == before[name] for name in left - others)
    said = capsys.readouterr().out
    assert "left out: flow: no run has head decoupled" in said
    assert "flow: no run has head decoupled" in (folder / "index.md").read_text()


def test_options_draw_a_figure_otherwise_into_another_folder(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    image = prepared.read().splits["val"][2].name
    wanted = ("--only", "compatibility", "flow", "--images", image, "--pixel", "3", "4")
    assert there.stage("figures", *wanted) == 2
    assert "figures/ holds what params.yaml says" in capsys.readouterr().err
    assert there.stage("figures", *wanted, "--out", "scratch") == 0
    assert {path.name for path in Path("scratch").glob("*.svg")} == {f"flow-decoupled-{image}.svg", "compatibility-joint_crf.svg"}
    assert not Path("figures").exists()


def test_odd_sizes_and_options_are_drawn_too(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """What a paper's figure does not have: no superpixels, other rates than the baseline's, +C, images of any size, void."""
    methods = there.params["methods"]
    methods["ecrf"]["crf"] = {"name": "embedded", "superpixel_weight": 0, "compatibility": "pair", "normalization": "absolute"}
    methods["ecrf"]["superpixels"] = "none"
    methods["ksac"]["head"]["shared"] = False
    methods["conv_crf"]["crf"] |= {"compatibility": True, "stride": 2}
    there.params["methods"] = {name: methods[name] for name in ("deeplab", "ecrf", "ksac", "conv_crf")}
    for name in ("ecrf", "ksac", "conv_crf"):
        save_weights(there, name)
    manifest = prepared.read()
    labels = [np.arange(height * width).reshape(height, width) * 4 // (height * width) for height, width in ((33, 90), (150, 31))]
    labels[0][:, 40:60] = 255
    pairs = tuple(put_pair(f"$_{{{n}}} <i>&", textured(n, *ids.shape), ids.astype(np.uint8)) for n, ids in enumerate(labels))
    prepared.write(replace(manifest, splits={**manifest.splits, "val": pairs}))
    there.params["figures"] = {"images": 2}
    assert there.stage("figures") == 0
    made = {path.stem for path in Path("figures").glob("*.svg")}
    assert {"class-weights-ecrf", "compatibility-conv_crf"} < made
    assert len(made) == 2 + 2 * len(("messages", "rates", "crfs"))
    for path in Path("figures").glob("*.svg"):
        ET.parse(path)
    index = Path("figures/index.md").read_text()
    assert "&lt;i&gt;" in index
    assert "<i>" not in index


def test_a_size_that_a_network_refuses_leaves_out_that_figure_alone(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("joint_crf", "conv_crf")}
    there.params["evaluations"] = {"joint_crf": {"of": "joint_crf"}}
    there.params["methods"]["conv_crf"]["crf"]["position"] = [32, 48]
    save_weights(there, "conv_crf")
    assert there.stage("figures") == 0
    assert "left out: crfs-conv_crf-" in (said := capsys.readouterr().out)
    assert "position is of 32 x 48 pixels, it cannot filter 48 x 64" in said
