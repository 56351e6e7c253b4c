"""Draw the README's picture from the results in the current folder: `uv run python -m stages.pictures`.

docs/pictures/scenes.png shows three images of the evaluated split with what six evaluations made of them, in params.yaml's order.
Equal results give equal bytes.
"""

import argparse
from pathlib import Path

from pipeline.ground.errors import UserError
from stages.command import run

OUT = Path("docs/pictures/scenes.png")
SHOWN = ("deeplab", "vanilla_crf", "ecrf", "joint_crf", "decoupled", "ecrf_car_ksac")  # of the default run; else the first ones
IMAGES = 3


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.pictures", description="Draw the README's picture from the results.")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"{OUT} otherwise")
    goal = parser.parse_args().out
    from PIL import Image

    from pipeline.data import prepared
    from pipeline.ground import files
    from pipeline.report import grids
    from pipeline.report.entries import read
    from pipeline.report.gallery import prediction_file, read_prediction
    from pipeline.settings import config

    entries = read(config.load())
    chosen = [entry for entry in entries if entry.name in SHOWN] or entries[: grids.COLUMNS]
    manifest = prepared.read()
    pairs = prepared.pairs(manifest, chosen[0].evaluation.split)
    pairs = tuple(pair for pair in pairs if all(prediction_file(entry, pair).is_file() for entry in chosen))
    if not pairs:
        raise UserError("the evaluations have no pictures of the same images: evaluate them again")
    rows = [
        grids.Row(pair.name, prepared.open_image(pair), prepared.open_label(pair), [read_prediction(e, pair) for e in chosen])
        for pair in pairs[:: max(1, len(pairs) // IMAGES)][:IMAGES]
    ]
    picture = grids.grid([entry.name for entry in chosen], rows, manifest.classes, manifest.palette)
    with files.replacing(goal) as file:
        # 256 colours are enough for flat labels and small images, and a third of the bytes.
        picture.quantize(256, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    print(f"{len(rows)} images, {len(chosen)} evaluations > {goal}")


if __name__ == "__main__":
    raise SystemExit(run(main))
