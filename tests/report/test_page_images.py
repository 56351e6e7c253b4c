"""The page's images: the divider, the viewer and the list of the worst and the best."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.page import IMAGES, Visit, counts, shown, signed

from pipeline.data import prepared


@pytest.mark.browser
def test_the_divider_moves_by_mouse_and_keyboard(project: Path, visit: Visit) -> None:
    page = visit()
    page.locator("#stage").scroll_into_view_if_needed()
    area = page.locator("#stage").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 20)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 4, area["y"] + 20, steps=4)
    page.mouse.up()
    assert page.input_value("#slide") == "25"
    assert page.evaluate("document.getElementById('side-left').style.clipPath") == "inset(0px 75% 0px 0px)"
    page.focus("#slide")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#slide") == "26"
    page.focus("#stage")
    page.keyboard.press("ArrowLeft")
    assert page.input_value("#slide") == "24"
    assert page.evaluate("document.getElementById('divider').style.left") == "24%"
    page.keyboard.press("+")
    assert page.inner_text("#zoom-value") == "1.5×"  # noqa: RUF001
    page.keyboard.press("0")
    assert page.inner_text("#zoom-value") == "1×"  # noqa: RUF001
    page.click("#zoom-in")
    assert "scale(1.5)" in page.evaluate("document.getElementById('photo').style.transform")


def pixels(page: Any, side: str) -> np.ndarray:
    """The pixels of one side's canvas, [H, W, 3]."""
    script = """side => { const canvas = document.querySelector(`#side-${side} canvas`);
        return [canvas.height, canvas.width, ...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]; }"""
    height, width, *values = page.evaluate(script, side)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.mark.browser
def test_the_viewer_shows_predictions_and_errors_of_the_chosen_image(project: Path, visit: Visit) -> None:
    page = visit()
    page.select_option("#image-order", "name")
    page.wait_for_function("document.querySelector('#image-list tbody th').textContent === 'night/1'")
    page.locator("#image-list button", has_text=IMAGES[2]).click()
    page.wait_for_function(f"document.getElementById('image-name').textContent === '{IMAGES[2]}'")
    page.select_option("#left", label="car")
    page.select_option("#right", label="labels")
    manifest = prepared.read()
    labels_HW = prepared.open_label(manifest.splits["val"][2])
    predicted_HW = counts("car").prediction(2)
    assert predicted_HW is not None
    palette = np.array(manifest.palette, np.uint8)
    assert (pixels(page, "left") == palette[predicted_HW]).all()
    valid = labels_HW != 255
    assert (pixels(page, "right")[valid] == palette[labels_HW[valid]]).all()
    assert set(map(tuple, pixels(page, "right")[~valid])) == {(40, 40, 40), (95, 95, 95)}
    page.check("input[name=show][value=errors]")
    red = (pixels(page, "left") == (200, 30, 30)).all(-1)
    assert (red == (valid & (predicted_HW != labels_HW))).all()
    assert 0 < red.mean() < 1
    right = (predicted_HW == labels_HW)[valid].mean()
    assert f"car {shown(float(right), 1)} %" in page.inner_text("#image-about")
    page.select_option("#right", label="deeplab")
    page.check("input[name=show][value=who]")
    other_HW = counts("deeplab").prediction(2)
    only_left = (pixels(page, "left") == (0, 114, 178)).all(-1)
    assert (only_left == (valid & (predicted_HW == labels_HW) & (other_HW != labels_HW))).all()


@pytest.mark.browser
def test_an_image_is_chosen_by_keyboard_without_losing_the_place(project: Path, visit: Visit) -> None:
    page = visit()
    button = page.locator("#image-list tbody button").nth(3)
    name = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.getElementById('image-name').textContent === {json.dumps(name)}")
    assert page.evaluate("document.activeElement.textContent") == name
    assert page.evaluate("document.activeElement.closest('tr').getAttribute('aria-current')") == "true"


@pytest.mark.browser
def test_the_worst_and_the_best_images_of_a_class_are_found(project: Path, visit: Visit) -> None:
    page = visit()
    iou = {}
    for name in ("deeplab", "car"):
        found = counts(name)
        hits, unions = found.hits_SPNK[:, 1].sum(0)[:, 4], found.unions_SPNK[:, 1].sum(0)[:, 4]
        iou[name] = np.where(unions > 0, hits / np.maximum(unions, 1), np.nan)
    known = np.flatnonzero(counts("car").labelled_NK[:, 4] > 0)
    page.select_option("#image-class", label="pole")
    page.select_option("#image-method", label="car")
    page.select_option("#image-other", label="deeplab")
    orders = {"worst": iou["car"], "best": -iou["car"], "loses": iou["car"] - iou["deeplab"], "gains": iou["deeplab"] - iou["car"]}
    for order, worth in orders.items():
        page.select_option("#image-order", order)
        best = known[np.argsort(worth[known], kind="stable")]
        first = min(10, len(best))
        page.wait_for_function(f"document.querySelector('#image-list tbody th').textContent === {json.dumps(IMAGES[best[0]])}")
        assert page.locator("#image-list tbody th").all_inner_texts() == [IMAGES[index] for index in best[:first]]
        cells = page.locator("#image-list tbody tr").first.locator("td").all_inner_texts()
        assert cells[1] == shown(iou["car"][best[0]], 1)
        assert cells[3] == signed(iou["car"][best[0]] - iou["deeplab"][best[0]], 1)
    assert page.inner_text("#image-range").endswith(f"of {len(known)}")
