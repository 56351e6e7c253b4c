"""The report says what the results say, whatever the classes are called, and shows predictions in the classes' colours."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.data import prepared
from pipeline.evaluation import pictures
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.report import curves, grids, tables
from pipeline.report import write as report
from pipeline.report.sections import terminal
from pipeline.settings import config
from stages import report as stage
from stages.command import run

ROOT = Path(__file__).parents[2]
CLASSES = ("a|b <i>", "*bold*", "traffic_light")
PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
LABELS = np.repeat(np.array([[0, 1, 2, 255]], np.uint8), 20, 0).repeat(10, 1)  # four stripes of 10 x 20 pixels


METHODS = {
    "fcn": {"head": {"name": "fcn", "width": 128}},
    "deeplab": {},
    "ecrf": {"crf": {"name": "embedded"}, "superpixels": "slic", "train": {"lr": 0.5}},
}


def method(**changes: object) -> dict[str, object]:
    """A method of params.yaml."""
    usual = {"crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "none"}
    return {"head": {"name": "deeplab", "width": 128, "rates": [2, 4, 6]}} | usual | changes


def protocol(miou: float, ious: list[float | None]) -> dict:
    boundary = {radius: {"present": miou / 2, "gscnn": miou / 4} for radius in ("1", "3", "12")}
    named = dict(zip(CLASSES, ious, strict=True))
    return {"miou": miou, "pixel_accuracy": 0.9, "mean_accuracy": None, "iou": named, "boundary_f": boundary}


def write_results(name: str, mious: list[float], **changes: object) -> None:
    per_seed = [
        {"seed": seed, "single_scale": protocol(miou, [miou, None, 0.25]), "multi_scale_flip": protocol(miou + 0.01, [0.5, None, 0.25])}
        for seed, miou in enumerate(mious)
    ]
    mean = sum(mious) / len(mious)
    seeds = {"per_seed": [{"seed": seed, "images_per_second": 12.34 + seed} for seed in range(len(mious))]} if len(mious) > 1 else {}
    values = {
        "evaluation": name, "run": name, "dataset": "scenes", "split": "val", "images": 2, "seeds": list(range(len(mious))),
        "single_scale": protocol(mean, [mean, None, 0.25]), "multi_scale_flip": protocol(mean + 0.01, [0.5, None, 0.25]),
        "per_seed": per_seed,
        "cost": {"parameters": 1_500_000, "flops": 2.5e9, "images_per_second": 12.34, "peak_memory_bytes": 3 * 2**29,
                 "train_seconds": 3723.0} | seeds,
    }  # fmt: skip
    files.write_json(Path(f"results/{name}.json"), values | changes)
    for seed in range(len(mious)):
        weights = Path(f"runs/{name}/weights")
        files.write_json(weights / f"seed-{seed}.json", {"steps": 400, "device": "CPU", "peak_memory_bytes": 2**20, "seconds": 9})
        record = "".join(f"{step},{2 - step / 500},0.1\n" for step in range(10, 410, 10))
        files.write_bytes(weights / f"seed-{seed}.csv", f"step,loss,lr\n{record}".encode())
    for number in range(2):
        prediction = np.roll(np.where(LABELS == 255, 0, LABELS), number * 10, 1).astype(np.uint8)
        pictures.save(
            pictures.indexed(prediction, PALETTE), Path(f"results/{name}/pictures/{pictures.safe_name(f'image {number}')}.prediction.png")
        )


@pytest.fixture
def project(workspace: Path) -> Path:
    """Two methods that were evaluated, one with two seeds, and one that no evaluation names."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluations"] = {"fcn": {"of": "fcn"}, "ecrf": {"of": "ecrf"}}
    params["methods"] = {name: method(**changes) for name, changes in METHODS.items()}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    pairs = []
    for number in range(2):
        pictures.save(Image.new("RGB", (40, 20), (100, 100, 100)), store.path("images", f"{number}.png"))
        pictures.save(Image.fromarray(LABELS), store.path("labels", f"{number}.png"))
        pairs.append(prepared.Pair(f"image {number}", f"{number}.png", f"{number}.png", 20, 40))
    prepared.write(prepared.Prepared("scenes", CLASSES, PALETTE, {"train": tuple(pairs[:1]), "val": tuple(pairs)}))
    write_results("fcn", [0.5])
    write_results("ecrf", [0.50, 0.54])
    return workspace


def table(title: str) -> list[list[str]]:
    """The first table under a heading of index.md, its cells split at bars that are not escaped."""
    text = Path("report/index.md").read_text()
    lines = text[text.index(f"## {title}\n") :].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [rows[0], *rows[2:]]


def test_tables_say_what_the_results_say(project: Path) -> None:
    report.write(config.load())
    header, first, second = table("Methods")
    assert header == ["method", "mIoU", "mIoU, multi-scale + flip", "pixel accuracy", "mean accuracy", "F 1 px", "F 3 px"]
    assert first == ["`fcn`", "50.00", "51.00", "**90.00**", "–", "25.00", "25.00"]  # noqa: RUF001
    assert second[:3] == ["`ecrf`", "**52.00** ± 2.83 (+2.00)", "**53.00** ± 2.83 (+2.00)"]
    assert second[3:5] == ["**90.00** ± 0.00 (+0.00)", "–"]  # noqa: RUF001
    assert table("Cost")[1] == ["`fcn`", "1.50", "2.50", "12.3", "1.50 GiB", "400", "1 h 02 min", "1 MiB", "1", "CPU"]
    assert table("Cost")[2][3] == "12.3 ± 0.7"
    settings = table("Settings")[2]
    assert settings[:4] == ["`ecrf`", "deeplab (width 128, rates \\[2, 4, 6\\])", "embedded", "cross_entropy"]
    assert settings[-2:] == ["train.lr 0.5", "0, 1"]
    text = Path("report/index.md").read_text()
    assert "`val`" in text
    assert "F_gscnn, 12 px" in text
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert sorted(links) == ["pictures/curves.png", "pictures/val.png"]
    assert all((Path("report") / link).is_file() for link in links)


def test_class_names_cannot_break_the_table(project: Path) -> None:
    report.write(config.load())
    assert table("Classes") == [
        ["class", "`fcn`", "`ecrf`"],
        ["a\\|b &lt;i&gt;", "50.00", "**52.00**"],
        ["\\*bold\\*", "–", "–"],  # noqa: RUF001
        ["traffic_light", "**25.00**", "**25.00**"],
        ["*mean*", "50.00", "**52.00**"],
    ]
    assert tables.escaped("_x_ [a](b)\n# `c`") == "\\_x\\_ \\[a\\](b) # \\`c\\`"


def test_equal_inputs_give_equal_bytes_and_old_pictures_go(project: Path) -> None:
    report.write(config.load())
    before = {path: path.read_bytes() for path in Path("report").rglob("*.*") if path.is_file()}
    (Path("report/pictures") / "old.png").write_bytes(b"")
    report.write(config.load())
    assert {path: path.read_bytes() for path in Path("report").rglob("*.*") if path.is_file()} == before


def test_the_grid_shows_the_classes_colours_and_hatches_void(project: Path) -> None:
    report.write(config.load())
    pixels = np.asarray(Image.open("report/pictures/val.png"))
    cell, top = 320, grids.MARGIN + 2 * grids.LINE
    step = cell + grids.GAP
    # cells: image, labels, fcn, ecrf; a stripe is a quarter of a cell
    middle = top + cell // 4
    seen = [
        [tuple(pixels[middle, grids.MARGIN + column * step + cell * (2 * stripe + 1) // 8]) for stripe in range(4)] for column in range(4)
    ]
    assert seen[0] == [(100, 100, 100)] * 4
    assert seen[1][:3] == list(PALETTE)
    assert seen[2] == seen[3] == [*PALETTE, PALETTE[0]]
    void = pixels[top + 10 : top + 100, grids.MARGIN + step + cell * 3 // 4 + 5 : grids.MARGIN + step + cell - 5].reshape(-1, 3)
    assert {tuple(colour) for colour in void} == set(pictures.HATCH)
    assert abs((void == pictures.HATCH[0]).all(1).mean() - 0.5) < 0.05
    second = middle + cell // 2 + grids.LINE + grids.GAP  # the other image's prediction is rolled by one stripe
    assert tuple(pixels[second, grids.MARGIN + 2 * step + cell * 3 // 8]) == PALETTE[0]


def test_a_legend_names_all_of_few_classes_and_those_that_occur_of_many() -> None:
    row = grids.Row("x", Image.new("RGB", (4, 4)), np.full((4, 4), 7, np.uint8), [np.full((4, 4), 99, np.uint8), None])
    assert grids.shown_classes([row], 20) == list(range(20))
    assert grids.shown_classes([row], 150) == [7, 99]
    assert grids.drawable("é\n日 x") == "e ? x"
    assert grids.fitted((10, 40), 100) == (25, 100)


def test_twelve_methods_and_150_classes_fit(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    names = [f"method_{number}" if number else "method_with_a_name_that_is_long" for number in range(12)]
    params["methods"] = {name: params["methods"]["fcn"] for name in names}
    params["evaluations"] = {name: {"of": name} for name in names}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    manifest = prepared.read()
    classes = tuple(f"class {number}" for number in range(150))
    prepared.write(prepared.Prepared("scenes", classes, PALETTE * 50, manifest.splits))
    for number, name in enumerate(names):
        write_results(name, [0.11 * (number % 9), 0.12, 0.13])
    entries = report.write(config.load())
    lines = terminal(entries).splitlines()
    assert len(lines) == 14
    assert max(map(len, lines)) <= 100
    assert lines[2].startswith("method_with_")
    assert len(table("Classes")) == 152
    assert {path.name for path in Path("report/pictures").iterdir()} == {"curves.png", "val-1.png", "val-2.png"}


def test_the_stage_prints_the_table_and_names_methods_without_evaluation(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report"])
    assert run(stage.main) == 0
    output = capsys.readouterr()
    line = next(line for line in output.out.splitlines() if line.startswith("ecrf"))
    assert line.split() == ["ecrf", "52.00±2.83", "+2.00", "53.00", "+2.00", "90.00", "–", "26.00", "26.00", "1.5", "1", "h", "02", "min"]  # noqa: RUF001
    assert output.out.rstrip().endswith("report/index.md")
    assert output.err.count("warning:") == 1
    assert "add under evaluations:  deeplab: {of: deeplab}" in output.err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda: Path("results/ecrf.json").unlink(), "results/ecrf.json does not exist: run `uv run dvc repro evaluate@ecrf`"),
        (lambda: Path("results/ecrf.json").write_text('{"a":'), "results/ecrf.json is damaged"),
        (lambda: Path("results/ecrf.json").write_text('{"seeds": []}'), "results/ecrf.json is damaged (it has no single_scale)"),
        (lambda: write_results("ecrf", [0.1], per_seed=None), "results/ecrf.json is damaged (it has no per_seed)"),
        (lambda: write_results("ecrf", [0.1], dataset="camvid"), "results/ecrf.json is of the dataset camvid, but params.yaml says scenes"),
        (lambda: write_results("ecrf", [0.1], run="fcn"), "results/ecrf.json is of the run fcn, but params.yaml says ecrf"),
        (lambda: Path("runs/ecrf/weights/seed-0.csv").write_text("a,b\n1,2\n"), "runs/ecrf/weights/seed-0.csv is no training record"),
        (lambda: store.path("labels", "0.png").unlink(), "is missing from the store"),
    ],
)
def test_results_that_are_missing_or_of_something_else_are_one_line(project: Path, damage, said: str) -> None:
    damage()
    with pytest.raises(UserError) as caught:
        report.write(config.load())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_curves_are_those_of_the_evaluated_seeds_as_far_as_they_are_there(project: Path) -> None:
    Path("runs/fcn/weights/seed-0.csv").rename("runs/fcn/weights/seed-0 (copy).csv")
    files.write_bytes(Path("runs/ecrf/weights/seed-7.csv"), b"step,loss\n1,2\n")  # of a seed that was not evaluated
    report.write(config.load())
    assert {row["run"] for row in csv.DictReader(Path("report/curves.csv").read_text().splitlines())} == {"ecrf seed 0", "ecrf seed 1"}


def test_curves_are_thinned_and_skip_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "runs/fcn/weights/seed-0.csv"
    path.parent.mkdir(parents=True)
    rows = [f"{step},{step % 10}" for step in range(1, 4001)] + ["4001,nan", "4002,"]
    path.write_text("\n".join(["step,loss", *rows]))
    curve = curves.read(path)
    assert len(curve) == curves.POINTS
    assert curve[0] == (20.0, 4.5)
    assert curve[-1] == (4000.0, 4.5)
    written = list(csv.DictReader(curves.table({"fcn": curve[:1]}).splitlines()))
    assert written == [{"run": "fcn", "step": "20", "loss": "4.5"}]


@pytest.mark.parametrize("losses", [[0.0], [1e-9, 2e-9], [5.0, 1e6], []])
def test_curves_of_any_size_are_drawn(losses: list[float]) -> None:
    picture = curves.picture({"fcn": [list(enumerate(losses, start=1))]})
    assert picture.size == (curves.WIDTH, curves.HEIGHT)


@pytest.mark.parametrize("highest", [0.013, 0.3, 1, 2.6, 9.99, 10, 400, 80000])
def test_axes_have_few_round_numbers(highest: float) -> None:
    values = curves.ticks(highest)
    assert 3 <= len(values) <= 7
    assert values[0] == 0
    assert values[-1] <= highest
    assert all(len(json.dumps(value)) <= 8 for value in values)
