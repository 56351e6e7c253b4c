"""The report page in a browser: it asks for nothing, says what the results say, and works by mouse, keyboard and printer."""

import base64
import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from makers import synthetic

from pipeline.data import prepared
from pipeline.evaluation import record
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.report import charts, embedding, placement, tables
from pipeline.report import write as report
from pipeline.report.page import FILES
from pipeline.settings import config

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
METHODS = ("deeplab", "ecrf", "car")
CLASSES = ("sky", '<img src=x onerror="window.hacked=1">', "</script><script>window.hacked=1</script>", "a|b & 'c' \u2028", "pole", "never")
IMAGES = ("night/1", "<b>2</b>", *(f"val-{number:03d}" for number in range(2, 14)))


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


class Visit:
    """Opens report/index.html, and knows what it asked for and complained of."""

    def __init__(self, browser: Any) -> None:
        self.browser, self.asked, self.said, self.contexts = browser, [], [], []

    def __call__(self, width: int = 1300, theme: str = "light") -> Any:
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(Path("report/index.html").absolute().as_uri())
        page.wait_for_function("document.getElementById('stage').hidden || document.getElementById('image-name').textContent !== ''"
                               " || document.getElementById('images').hidden")  # fmt: skip
        page.wait_for_function("[...document.querySelectorAll('.chart')].every(c => c.closest('section').hidden || c.firstElementChild)")
        return page

    def heard(self, message: Any) -> None:
        """Keep complaints, but for those of a test that reads canvases."""
        if message.type in ("error", "warning") and "getImageData" not in message.text:
            self.said.append(message.text)


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visit]:
    """Visits that end without a complaint of the page and without a request."""
    visits = Visit(chromium)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.said == []
    assert {url for url in visits.asked if not url.endswith("/report/index.html")} == set()


@pytest.fixture(scope="module")
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


def results(name: str) -> dict[str, Any]:
    return json.loads(Path(f"results/{name}.json").read_text())


def counts(name: str) -> record.Record:
    found = record.read(Path(f"results/{name}/images.npz"), len(CLASSES), "")
    assert found is not None
    return found


def shown(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    return f"{100 * value:+.{digits}f}".replace("-", "\u2212")


def column(page: Any, table: str, index: int) -> list[str]:
    return page.eval_on_selector_all(f"#{table} tbody tr", f"rows => rows.map(row => row.cells[{index}].firstChild.textContent.trim())")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1500, 800, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_every_width_and_theme(project: Path, visit: Visit, width: int, theme: str) -> None:
    page = visit(width, theme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".chart svg").count() == 3
    assert page.locator("main > section:visible").count() == 8
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 60)")
    assert dark == (theme == "dark")


@pytest.mark.browser
def test_the_switch_overrules_the_system(project: Path, visit: Visit) -> None:
    page = visit(theme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.check('input[name=theme][value="dark"]')
    assert page.evaluate(paper) != light
    page.check('input[name=theme][value="light"]')
    assert page.evaluate(paper) == light
    page.evaluate("localStorage.setItem('theme', '\"dark\"'); localStorage.setItem('segmentation-report-theme', '\"]')")
    page.reload()  # other pages from the disk share the storage
    page.wait_for_selector(".chart svg")
    assert page.is_checked('input[name=theme][value="auto"]')


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
def test_html_in_names_is_inert(project: Path, visit: Visit) -> None:
    page = visit()
    assert page.evaluate("window.hacked") is None
    names = page.eval_on_selector_all("#heat tbody th", "cells => cells.map(cell => cell.textContent)")
    assert names == list(CLASSES)
    options = page.eval_on_selector_all("#image-class option", "found => found.map(option => option.textContent)")
    assert options[1:] == list(CLASSES)
    page.select_option("#image-order", "name")
    page.wait_for_function("document.querySelector('#image-list tbody th').textContent === 'night/1'")
    assert page.locator("#image-list tbody th").all_inner_texts()[:2] == list(IMAGES[:2])
    source = Path("report/index.html").read_text()
    assert "<img src=x" not in source
    assert "</script><script>window.hacked" not in source
    assert page.locator("img[src=x], #images b").count() == 0


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


NAMELESS = """() => [...document.querySelectorAll('a, button, select, input, [tabindex], summary, canvas[role]')].filter(part => {
    if (!part.checkVisibility()) return false;
    const labels = [...(part.labels ?? [])].map(label => label.textContent).join('');
    const by = document.getElementById(part.getAttribute('aria-labelledby'))?.textContent ?? '';
    return !(part.getAttribute('aria-label') || labels || by || part.textContent).trim();
}).map(part => part.outerHTML.slice(0, 100))"""


@pytest.mark.browser
def test_the_keyboard_reaches_everything_in_order_and_everything_has_a_name(project: Path, visit: Visit) -> None:
    page = visit()
    assert page.evaluate(NAMELESS) == []
    page.evaluate("window.reached = []; document.addEventListener('focusin', event => window.reached.push(event.target))")
    for _ in range(130):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#runs') !== null"):
            break
    assert page.evaluate("reached.every((part, i) => !i || reached[i - 1].compareDocumentPosition(part) & 4)")
    ids = page.evaluate("reached.map(part => part.id)")
    assert {"baseline", "radius", "heat-find", "left", "stage", "slide", "matrix"} <= set(ids)
    assert page.evaluate("reached[0].className") == "skip"
    headings = page.eval_on_selector_all("h1, h2, h3", "found => found.map(part => Number(part.tagName[1]))")
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


@pytest.mark.browser
def test_it_prints(project: Path, visit: Visit) -> None:
    page = visit(theme="dark")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 40
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.browser
def test_a_single_method_class_and_image(workspace: Path, visit: Visit) -> None:
    synthetic.project(["fcn"], ["thing"], ["one"])
    report.write(config.load())
    page = visit()
    assert page.inner_text("h1") == "scenes: 1 method"
    assert page.locator("#baseline:visible, #heat-mode:visible, #board-hint:visible, #image-other:visible").count() == 0
    assert page.inner_text("#image-name") == "one"
    assert page.locator("#image-list tbody tr").count() == 1
    assert page.locator("#image-order option:enabled").all_inner_texts() == ["the worst", "the best", "in the split's order"]
    assert column(page, "board", 0) == ["fcn"]


@pytest.mark.browser
def test_results_without_records_or_scores_say_so(project: Path, visit: Visit) -> None:
    for name in METHODS:
        Path(f"results/{name}/images.npz").unlink()
        values = results(name)
        for part in (values, *values["per_seed"]):
            part["single_scale"] |= {"boundary_f": {}, "mean_accuracy": None, "miou": None}
            part["multi_scale_flip"]["boundary_f"] = {}
        values["cost"] = {}
        files.write_json(Path(f"results/{name}.json"), values)
        for path in Path(f"runs/{name}/weights").iterdir():
            path.unlink()
    report.write(config.load())
    page = visit()
    assert page.locator("#images-missing, #confusion-missing").all_inner_texts() != ["", ""]
    assert "uv run dvc repro" in page.inner_text("#confusion-missing")
    assert column(page, "board", 1) == ["–"] * 3  # noqa: RUF001
    assert page.locator("#boundaries, #costs, #training").evaluate_all("found => found.every(part => part.hidden)")
    assert page.locator("#image-list tbody tr").count() == 6  # those with large pictures
    assert page.inner_text("#image-name") != ""


@pytest.mark.browser
def test_two_splits_and_two_evaluations_of_one_run(project: Path, visit: Visit) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluations"] |= {"ecrf_train": {"of": "ecrf", "split": "train"}, "ecrf_again": {"of": "ecrf"}}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    manifest = prepared.read()
    rng = np.random.default_rng(5)
    for name, split in (("ecrf_train", "train"), ("ecrf_again", "val")):
        made = synthetic.measured(manifest.splits[split], len(CLASSES), 1, 0.7, rng)
        synthetic.write(name, "ecrf", made, CLASSES, 1, split)
    report.write(config.load())
    page = visit()
    assert "of ecrf, split train" in page.locator("#board tbody tr").nth(3).inner_text()
    assert "evaluated on different images are not compared" in page.inner_text(".lead")
    deltas = "rows => rows.map(row => row.cells[1].querySelector('.delta').textContent !== '')"
    assert page.eval_on_selector_all("#board tbody tr", deltas) == [False, True, True, False, True]
    page.check("input[name=heat-mode][value=difference]")
    assert set(column(page, "heat", 2 + 3)) == {"–"}  # noqa: RUF001
    page.select_option("#baseline", label="ecrf_train")
    assert page.eval_on_selector_all("#board tbody tr", deltas) == [False] * 5
    rows = [line for line in Path("report/index.md").read_text().splitlines() if line.startswith("| `ecrf_")]
    assert "(" not in rows[0]
    assert "(" in rows[1]
    page.select_option("#split", label="train")
    page.wait_for_function("document.querySelectorAll('#image-list tbody tr').length === 1")
    assert page.eval_on_selector_all("#left option", "found => found.map(option => option.textContent)") == [
        "photograph",
        "labels",
        "ecrf_train",
    ]


@pytest.mark.browser
def test_images_that_the_first_evaluation_lacks_are_ranked_by_the_others(project: Path, visit: Visit) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluations"] = {"part": {"of": "ecrf", "match": "val-*"}} | params["evaluations"]
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    pairs = [pair for pair in prepared.read().splits["val"] if pair.name.startswith("val-")]
    synthetic.write("part", "ecrf", synthetic.measured(pairs, len(CLASSES), 1, 0.7, np.random.default_rng(5)), CLASSES, 1)
    report.write(config.load())
    page = visit()
    assert page.inner_text(".lead").startswith(f"6 classes, 1 training image; scores on {len(IMAGES)} images of val")
    page.select_option("#image-method", label="car")
    page.wait_for_function(f"document.getElementById('image-range').textContent.endsWith('of {len(IMAGES)}')")
    page.select_option("#image-method", label="part")
    page.wait_for_function(f"document.getElementById('image-range').textContent.endsWith('of {len(pairs)}')")


@pytest.mark.browser
@pytest.mark.slow
def test_twelve_methods_150_classes_and_2000_images(workspace: Path, visit: Visit) -> None:
    names = [f"method_{number}" for number in range(11)] + ["a_method_with_quite_a_long_name_of_its_own"]
    classes = [f"class {number}, or another name of it" for number in range(150)]
    synthetic.project(names, classes, [f"val_{number:08d}" for number in range(2000)], size=(64, 96), labels=50)
    report.write(config.load())
    assert Path("report/index.html").stat().st_size < 20 * 2**20
    page = visit()
    assert page.evaluate("document.querySelectorAll('*').length") < 12_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.inner_text("#image-range") == "1–10 of 2,000"  # noqa: RUF001
    assert "48 of 2,000" in page.inner_text("#images-note")
    page.select_option("#image-class", "149")
    page.uncheck("#image-seen")
    page.wait_for_function("document.getElementById('image-range').textContent !== '1–10 of 2,000'")  # noqa: RUF001
    assert page.locator("#heat td.heat").count() == 151 * 12


def test_a_damaged_record_is_one_line(project: Path) -> None:
    path = Path("results/ecrf/images.npz")
    whole = path.read_bytes()
    method = whole.rindex(b"PK\x01\x02") + 10  # of compression, in the last entry's header
    for content in (whole[: len(whole) // 2], b"", b"no zip", whole[:method] + b"\x63" + whole[method + 1 :]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged") as caught:
            report.write(config.load())
        assert str(caught.value).startswith("results/ecrf/images.npz")
        assert str(caught.value).endswith("run `uv run dvc repro --force --single-item evaluate@ecrf`")
        assert "\n" not in str(caught.value)


def test_equal_inputs_give_equal_pages_and_records(project: Path) -> None:
    before = Path("report/index.html").read_bytes()
    report.write(config.load())
    assert Path("report/index.html").read_bytes() == before
    path = Path("results/ecrf/images.npz")
    bytes_ = path.read_bytes()
    record.write(path, counts("ecrf"))
    assert path.read_bytes() == bytes_


def test_only_the_page_s_own_scripts_may_run_and_nothing_may_be_loaded(project: Path) -> None:
    source = Path("report/index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)[1]  # type: ignore[index]
    assert "default-src &#x27;none&#x27;" in policy
    assert "'unsafe-inline'" not in re.search(r"script-src ([^;]+)", policy.replace("&#x27;", "'"))[1]  # type: ignore[index]
    assert not re.search(r'(src|href)="(?!data:|#|index\.md)', source.split('id="data"')[0])


def test_what_is_embedded_ends_no_script() -> None:
    assert "<" not in embedding.data({"</script>": ["<!--", "&", ">"]})
    assert json.loads(embedding.data(["</script>\u2028"])) == ["</script>\u2028"]
    assert gzip.decompress(base64.b64decode(embedding.packed(b"abc"))) == b"abc"
    assert embedding.element("td", "x", data_v='"><b>', hidden=True, id=None) == '<td data-v="&quot;&gt;&lt;b&gt;" hidden>x</td>'


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
