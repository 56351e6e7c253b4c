"""Visits to the report page, and what it has to say: the results as text."""

import json
from pathlib import Path
from typing import Any

from pipeline.evaluation import record

METHODS = ("deeplab", "ecrf", "car")
CLASSES = ("sky", '<img src=x onerror="window.hacked=1">', "</script><script>window.hacked=1</script>", "a|b & 'c' \u2028", "pole", "never")
IMAGES = ("night/1", "<b>2</b>", *(f"val-{number:03d}" for number in range(2, 14)))


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
