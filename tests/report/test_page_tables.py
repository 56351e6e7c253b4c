"""The page's leaderboard, heat map and confusion matrix say what the results say."""

import json
from pathlib import Path

import numpy as np
import pytest
from makers.page import CLASSES, METHODS, Visit, column, counts, results, shown, signed

from pipeline.report import tables


@pytest.mark.browser
def test_the_leaderboard_says_what_the_results_say_and_sorts(project: Path, visit: Visit) -> None:
    page = visit()
    scores = {name: results(name)["single_scale"]["miou"] for name in METHODS}
    assert column(page, "board", 0) == list(METHODS)
    assert column(page, "board", 1) == [shown(scores[name]) for name in METHODS]
    head = page.locator("#board thead th").nth(1)
    for sorting, expected in (
        ("descending", sorted(METHODS, key=lambda name: -scores[name])),
        ("ascending", sorted(METHODS, key=scores.get)),
    ):  # type: ignore[arg-type]
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == sorting
        assert column(page, "board", 0) == expected
    page.locator("#board thead th").nth(0).locator("button").press("Enter")
    assert column(page, "board", 0) == sorted(METHODS)
    page.select_option("#baseline", label="ecrf")
    deltas = page.eval_on_selector_all("#board tbody tr", "rows => rows.map(row => row.cells[1].querySelector('.delta').textContent)")
    assert deltas == ["" if name == "ecrf" else signed(scores[name] - scores["ecrf"]) for name in sorted(METHODS)]
    spreads = page.eval_on_selector_all("#board tbody tr", "rows => rows.map(row => row.cells[1].querySelector('.spread').textContent)")
    both = [[seed["single_scale"]["miou"] for seed in results(name)["per_seed"]] for name in sorted(METHODS)]
    assert spreads == [f" ±{shown(float(np.std(values, ddof=1)))}" for values in both]
    seconds = {
        name: [json.loads(Path(f"runs/{name}/weights/seed-{seed}.json").read_text())["seconds"] for seed in (0, 1)] for name in METHODS
    }
    speeds = {name: [seed["images_per_second"] for seed in results(name)["cost"]["per_seed"]] for name in METHODS}
    written = page.eval_on_selector_all(
        "#board tbody tr", "rows => rows.map(row => row.cells[row.cells.length - 2].innerText.split('\\n')[0])"
    )
    assert written == [f"{np.mean(speeds[name]):.1f} ±{np.std(speeds[name], ddof=1):.1f}" for name in sorted(METHODS)]
    written = page.eval_on_selector_all("#board tbody tr", "rows => rows.map(row => row.lastElementChild.firstChild.textContent"
                                        " + row.lastElementChild.querySelector('.spread').textContent)")  # fmt: skip
    assert written == [f"{tables.duration(float(np.mean(seconds[name])))} ±{tables.duration(float(np.std(seconds[name], ddof=1)))}"
                       for name in sorted(METHODS)]  # fmt: skip


@pytest.mark.browser
def test_the_boundary_radius_is_chosen(project: Path, visit: Visit) -> None:
    page = visit()
    for radius, convention in (("3", "present"), ("5", "gscnn")):
        page.select_option("#radius", radius)
        page.select_option("#convention", convention)
        cells = page.locator("#board tbody tr:first-child td[data-f]:visible")
        value = results("deeplab")["single_scale"]["boundary_f"][radius][convention]
        assert cells.count() == 1
        assert cells.inner_text().startswith(shown(value))
        assert page.locator("#board thead th[data-f]:visible").inner_text().startswith(f"boundary F, {radius}\u00a0px")


@pytest.mark.browser
def test_the_heat_map_shows_iou_and_differences_and_finds_classes(project: Path, visit: Visit) -> None:
    page = visit()
    iou = {name: results(name)["multi_scale_flip"]["iou"] for name in METHODS}
    page.check("input[name=heat-protocol][value=w]")
    for place, name in enumerate(METHODS):
        assert column(page, "heat", 2 + place) == [*(shown(iou[name][c], 1) for c in CLASSES[:-1]), "–"]  # noqa: RUF001
    page.check("input[name=heat-mode][value=difference]")
    assert column(page, "heat", 2) == [*(shown(iou["deeplab"][c], 1) for c in CLASSES[:-1]), "–"]  # noqa: RUF001
    assert column(page, "heat", 4) == [*(signed(iou["car"][c] - iou["deeplab"][c], 1) for c in CLASSES[:-1]), "–"]  # noqa: RUF001
    page.locator("#heat thead button").nth(4).click()
    order = sorted(CLASSES[:-1], key=lambda c: -(iou["car"][c] - iou["deeplab"][c]))
    assert page.eval_on_selector_all("#heat tbody th", "cells => cells.map(cell => cell.dataset.v)") == [*order, "never"]
    for place in (-1, 0):  # of the class without pixels, by the share of pixels
        page.locator("#heat thead button").nth(1).click()
        assert page.eval_on_selector_all("#heat tbody th", "cells => cells.map(cell => cell.dataset.v)")[place] == "never"
    page.fill("#heat-find", "POLE")
    assert page.locator("#heat tbody tr:visible").count() == 1


@pytest.mark.browser
def test_the_confusion_matrix_is_told_cell_by_cell(project: Path, visit: Visit) -> None:
    page = visit()
    confusion_KK = counts("car").confusion_SPKK[:, 1].sum(0)
    page.select_option("#confusion-method", label="car")
    page.focus("#matrix")
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    said = page.inner_text("#matrix-readout")
    assert said.startswith(f"sky as {CLASSES[1]}: {shown(confusion_KK[0, 1] / confusion_KK[0].sum())} % of the label")
    assert said.endswith(f"{confusion_KK[0, 1]:,} pixels")
    errors = confusion_KK - np.diag(confusion_KK.diagonal())
    label, prediction = np.unravel_index(errors.argmax(), errors.shape)
    row = page.locator("#confusions tbody tr").first
    assert row.locator("th").inner_text() == CLASSES[label]
    numbers = [shown(errors.max() / confusion_KK[label].sum(), 1), shown(errors.max() / errors.sum(), 1)]
    assert row.locator("td").all_inner_texts()[1:] == numbers
    assert row.locator("td").first.text_content() == CLASSES[prediction]
