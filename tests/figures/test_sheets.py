"""Sheets of panels with names, titles and images of any kind and size."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.figures import canvas, panels

HOSTILE = ["$x_{1}$ & <b>bold</b>", "a\nb\tc", "street 道路", "道路", "x" * 300, "", "%s{}\\frac"]


def test_names_are_shown_as_they_are_and_short() -> None:
    shown = canvas.named(HOSTILE)
    assert shown[0] == HOSTILE[0]
    assert shown[1] == "a b c"
    assert shown[2] == "street ??"
    assert shown[3] == "class 3"
    assert len(shown[4]) == canvas.LONGEST
    assert shown[5] == "class 5"
    assert len(set(canvas.named([f"{'y' * 40} {number}" for number in range(150)]))) == 150
    with canvas.style():
        sheet = panels.matrices(1, HOSTILE, ("Title $x", "of " + "long " * 100))
        panels.matrix(sheet, sheet.panels[0][0], np.eye(7), HOSTILE, "$\\frac", limits=(0, 1), label="$")
        canvas.legend(sheet, HOSTILE, [(0, 0, 0)] * 7, [np.arange(7, dtype=np.uint8)[None]])
        sheet.figure.canvas.draw()


def test_a_title_is_no_wider_than_its_panel() -> None:
    with canvas.style():
        sheet = canvas.sheet(1, 3, ("Title", "line"))
        for panel, text in zip(sheet.panels[0], ("short", "of a middling length, as a class's name", "very long " * 12), strict=True):
            canvas.heading(panel, text)
        sheet.figure.canvas.draw()
        titles = [panel.title for panel in sheet.panels[0]]
        room = sheet.panels[0][0].get_window_extent().width
        assert all(title.get_window_extent().width <= 1.02 * room for title in titles)
    assert [title.get_text()[-1] for title in titles] == ["t", "e", "…"]
    assert [title.get_fontsize() for title in titles] == [8, pytest.approx(7, abs=1), 6]


def test_a_large_image_keeps_its_place_and_is_drawn_with_what_can_be_seen(tmp_path: Path) -> None:
    """Its outline lies where its regions meet, and stripes of one pixel become grey instead of a pattern."""
    image_HW3 = np.zeros((1200, 2400, 3), np.uint8)
    image_HW3[:, ::2] = 200
    regions_HW = np.zeros((1200, 2400), np.uint8)
    regions_HW[:, 1200:] = 1
    with canvas.style():
        sheet = canvas.sheet(1, 1, ("Title", "line"), shape=0.5)
        panel = sheet.panels[0][0]
        panels.photograph(panel, image_HW3, "image")
        panels.mark(panel, (600, 1800))
        canvas.outline(panel, regions_HW)
        assert panel.images[0].get_extent() == [0, 2400, 1200, 0]
        assert max(panel.images[0].get_size()) == canvas.FINEST
        line = panel.patches[0].get_path().vertices
        assert set(line[:, 0]) == {1200}
        assert line[:, 1].max() == 1200
        canvas.save(sheet, tmp_path / "large")
    with Image.open(tmp_path / "large.png") as image:
        values = np.asarray(image.convert("L"))[220:320, 30:180].astype(int)
    assert np.ptp(values) < 12
    assert values.mean() == pytest.approx(100, abs=6)


def test_150_names_do_not_overlap_and_the_picture_stays_of_a_usable_size(tmp_path: Path) -> None:
    names = [f"class number {number}" for number in range(150)]
    with canvas.style():
        sheet = panels.matrices(1, names, ("Title", "line"))
        panels.matrix(sheet, sheet.panels[0][0], np.eye(150), names, "title", limits=(0, 1))
        labels = [text.get_window_extent() for text in sheet.panels[0][0].get_yticklabels()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(canvas, "MOST", 500)
            canvas.save(sheet, tmp_path / "large")
    heights = sorted((box.y0, box.y1) for box in labels)
    assert all(below[1] <= above[0] for below, above in pairwise(heights))
    assert min(box.x0 for box in labels) >= 0
    assert max(sheet.figure.get_size_inches()) < 24
    with Image.open(tmp_path / "large.png") as image:
        assert 490 < max(image.size) <= 500


def test_a_sheet_that_grows_keeps_its_panels_shapes() -> None:
    with canvas.style():
        sheet = canvas.sheet(2, 2, ("Title", "line"), shape=0.5)
        before = [panel.get_window_extent().size.tolist() for row in sheet.panels for panel in row]
        canvas.legend(sheet, ["a"] * 3, [(0, 0, 0)] * 3, [np.array([[0, 2, 255]], np.uint8)])
    assert [panel.get_window_extent().size.tolist() for row in sheet.panels for panel in row] == [pytest.approx(size) for size in before]
    assert before[0][1] / before[0][0] == pytest.approx(0.5)
