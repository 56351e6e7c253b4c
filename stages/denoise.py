"""ConvCRF's synthetic denoising task (its Table 1) on the prepared dataset: `uv run python -m stages.denoise`.

Labels of the first evaluation's split get noise and CRFs take it away again. Writes denoise/table.md, table.json and a figure for each of
the first images. No stage of `dvc repro`: a few minutes of a CPU.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.progress import track
from pipeline.settings import config
from pipeline.settings.schema import Params
from stages.command import run

if TYPE_CHECKING:
    from pipeline.figures.denoising import Noise

# Table 1: VOC 2012, 500 x 500 pixels; milliseconds on a GTX 1080 Ti (FullCRF on a CPU; for the unary the CNN's).
PAPER = {
    "unary": (86.60, 51.87, 68), "FullCRF": (94.79, 84.37, 1022), "Conv5": (97.13, 90.90, 11), "Conv7": (97.13, 92.98, 22),
    "Conv11": (98.97, 93.74, 52), "Conv13": (98.99, 93.89, 73),
}  # fmt: skip

DRAWN = ("unary", "FullCRF", "Conv5", "Conv11", "Conv11, trained")


def main() -> None:
    """The command."""
    options = arguments()
    counts = (options.images, options.steps, options.seed)
    if options.factor < 1 or not 0 <= options.flip <= 1 or not 0 < options.confidence < 1 or min(counts) < 0:
        wanted = "--factor must be at least 1, --flip in [0, 1], --confidence between 0 and 1"
        raise UserError(f"{wanted}, --images, --steps and --seed not negative")
    params = config.load()

    from pipeline.figures import denoising

    noise = denoising.Noise(factor=options.factor, flip=options.flip, confidence=options.confidence)
    results = experiment(params, noise, options)
    text = table(results["methods"])
    files.write_json(options.out / "table.json", results)
    files.write_bytes(options.out / "table.md", text.encode())
    print(f"\n{text}\nThe table and figures: {options.out}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.denoise", description="ConvCRF's synthetic denoising task.")
    parser.add_argument("--images", type=int, default=40, help="of the split, evenly spread; 0: all (default 40)")
    parser.add_argument("--factor", type=int, default=8, help="labels are exchanged at 1 / factor of their size (default 8)")
    parser.add_argument("--flip", type=float, default=0.2, help="the share of labels that is exchanged (default 0.2)")
    parser.add_argument("--confidence", type=float, default=0.7, help="the unary's probability of a sure label (default 0.7)")
    parser.add_argument("--steps", type=int, default=60, help="of training the trained CRFs; 0: leave them out (default 60)")
    parser.add_argument("--exact", action="store_true", help="FullCRF without its lattice too: slow, memory grows with the pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--out", type=Path, default=Path("denoise"), metavar="DIR", help="where the table goes (default denoise)")
    return parser.parse_args()


def experiment(params: Params, noise: "Noise", options: argparse.Namespace) -> dict[str, Any]:
    """Train what is trained, compare all, and draw the first images; the results as table.json has them."""
    from dataclasses import asdict

    from pipeline.data import prepared
    from pipeline.evaluation.pictures import safe_name
    from pipeline.figures import canvas, choose, conv_crf, denoising
    from pipeline.figures.material import spread

    manifest = choose.dataset(params)
    classes, split = manifest.classes, choose.split_of(params)
    pairs = prepared.pairs(manifest, split)
    pairs = [pairs[index] for index in spread(len(pairs), options.images or len(pairs))]
    if not pairs:
        raise UserError(f"split {split} of {manifest.dataset} has no images")
    methods, numbers = denoising.untrained(options.exact), {}
    training = prepared.pairs(manifest, "train") if options.steps else ()
    for name, compatibility in (("Conv11, trained", False), ("Conv11+C, trained", True)):
        if training:
            crf = denoising.module(len(classes), compatibility=compatibility)
            steps = iter(track(range(options.steps), options.steps, name, unit="steps"))
            methods[name] = denoising.trained(crf, training, len(classes), noise, steps, options.seed)
            numbers[name] = denoising.learned(crf)
    found = iter(track(denoising.cases(pairs, len(classes), noise, options.seed), len(pairs), f"denoise {split}", unit="images"))
    results, kept = denoising.compare(methods, found, classes, noise, keep=2)
    if results["unary"]["miou"] is None:
        raise UserError(f"split {split} of {manifest.dataset} has no labels in the {len(pairs)} images that were taken")
    for case, made in kept:
        with canvas.style():
            drawn = {name: made[name] for name in DRAWN if name in made}
            sheet = conv_crf.denoised(case.image_HW3, case.labels_HW, drawn, manifest, f"image {case.name}, noise of seed {options.seed}")
            canvas.save(sheet, options.out / f"denoising-{safe_name(case.name)}")
    about = {"dataset": manifest.dataset, "split": split, "images": len(pairs), "noise": asdict(noise), "seed": options.seed}
    return about | {"steps": options.steps, "methods": results, "learned": numbers}


def table(results: dict[str, dict[str, float]]) -> str:
    """The results beside the paper's, in percent and milliseconds."""
    lines = ["| | accuracy | mIoU | ms an image | paper: accuracy | mIoU | ms |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, row in results.items():
        paper = PAPER.get(name)
        beside = f"{paper[0]:.2f} | {paper[1]:.2f} | {paper[2]}" if paper else "- | - | -"
        lines.append(f"| {name} | {100 * row['accuracy']:.2f} | {100 * row['miou']:.2f} | {row['milliseconds']:.0f} | {beside} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(run(main))
