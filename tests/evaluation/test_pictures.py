"""The pictures of an evaluation that runs twice at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.prepared import Prepared
from pipeline.evaluation import pictures
from pipeline.labels.palette import distinct


def test_two_that_write_the_same_pictures_end_well(workspace: Path) -> None:
    prepared = Prepared("scenes", ("sky", "road"), ((70, 130, 180), (128, 64, 128)), {})
    drawn = [(name, Image.new("RGB", (8, 8)), np.zeros((4, 4), np.uint8)) for name in ("a", "b")]
    folder = Path("results/ecrf/pictures")
    with ThreadPoolExecutor(4) as pool:
        for written in [pool.submit(pictures.write, folder, prepared, drawn) for _ in range(12)]:
            written.result()
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.prediction.png", "b.png", "b.prediction.png", "legend.png"]
    assert [path.name for path in folder.parent.iterdir()] == ["pictures"]


def test_a_legend_names_classes_of_any_letters_and_length() -> None:
    names = ["sky", "x" * 300, "日本", "two\nlines"]
    made = pictures.legend(names, distinct(4))
    plain = pictures.legend(["sky", "x" * 37 + "...", "??", "two lines"], distinct(4))
    assert made.size == plain.size
    assert made.tobytes() == plain.tobytes()
    assert made.width < 1600
