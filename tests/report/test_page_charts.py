"""The page's charts follow their controls, with labels and colours that can be told apart."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from makers.page import METHODS, Visit

from pipeline.report import charts, placement
from pipeline.report.page import FILES


@pytest.mark.browser
def test_charts_follow_their_controls(project: Path, visit: Visit) -> None:
    page = visit()
    lines = "#chart-boundary .mark-line path"
    before = page.eval_on_selector_all(lines, "paths => paths.map(path => path.getAttribute('d'))")
    assert len(before) == len(METHODS)
    page.check("input[name=boundary-protocol][value=multi_scale_flip]")
    page.wait_for_function(f"document.querySelector('{lines}').getAttribute('d') !== {json.dumps(before[0])}")
    page.select_option("#boundary-highlight", "ecrf")
    page.wait_for_function(
        f"[...document.querySelectorAll('{lines}')].filter(p => Number(p.getAttribute('opacity') ?? 1) < 0.2).length === 2"
    )
    for chart, said in (("boundary", ["method", "radius, px"]), ("training", ["run", "seed", "step"])):
        place = page.locator(f"#chart-{chart} svg").bounding_box()
        page.locator(f"#chart-{chart} svg").hover(position={"x": place["width"] / 3, "y": place["height"] / 2})
        page.wait_for_function(f"document.getElementById('vg-tooltip-element')?.innerText.includes('{said[-1]}')")
        assert page.locator("#vg-tooltip-element .key").all_inner_texts()[: len(said)] == said
        assert page.locator("#vg-tooltip-element .value").first.inner_text().strip() in METHODS
    page.check("input[name=cost-axis][value=train_seconds]")
    page.wait_for_function("document.getElementById('chart-cost').textContent.includes('training time, minutes')")
    assert all(name in page.text_content("#chart-cost") for name in METHODS)
    assert page.locator("#training-highlight option").all_inner_texts() == ["all", *METHODS]


def test_labels_of_points_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = [(float(x), float(y), "method_name") for x, y in rng.uniform((150, 40), (700, 320), (8, 2))]
        boxes = [placement.box(place, placement.LETTER * 11) for place in placement.placed(points, (860, 360))]
        for index, one in enumerate(boxes):
            assert placement.inside(one, (860, 360))
            assert not any(placement.overlap(one, other) for other in boxes[:index])


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours #rrggbb."""
    parts = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in (one, other)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722) + 0.05)
    return light / dark


def test_every_method_has_a_colour_that_stands_out_on_both_papers() -> None:
    assert len(set(charts.colours(30))) == 30
    for paper in re.findall(r"--paper: (#\w{6}); --panel", (FILES / "page.css").read_text()):
        assert all(contrast(colour, paper) >= 3 for colour in charts.COLOURS)
