"""The page of other projects: small, large, of several splits, and with records that are missing or damaged."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from makers import synthetic
from makers.page import CLASSES, IMAGES, METHODS, Visit, column, results

from pipeline.data import prepared
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.report import write as report
from pipeline.settings import config


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
