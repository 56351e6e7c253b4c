"""The report page in a browser: every width and theme, keyboard and printer, and nothing that is loaded or run from names."""

import base64
import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from makers.page import CLASSES, IMAGES, Visit, counts

from pipeline.evaluation import record
from pipeline.report import embedding
from pipeline.report import write as report
from pipeline.settings import config


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
