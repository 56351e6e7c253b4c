"""Predict images of your own: `uv run python -m stages.predict --run ecrf IMAGES... --out DIR`.

IMAGES are files, folders (with all that is in them) and patterns. For each, DIR gets <name>.labels.png, class ids with the classes'
colours as palette, and <name>.overlay.png; with --probabilities also <name>.probabilities.npy, float16 [classes, height, width].
An image that cannot be read is named and skipped; the exit status is then 1.
"""

import argparse
import glob
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.ground.errors import MEMORY, UserError, words
from pipeline.ground.progress import PLAIN_SECONDS, track
from stages.command import run

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from pipeline.release.predictor import Predictor

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif"}  # of images in a folder
ENDINGS = (".labels.png", ".overlay.png", ".probabilities.npy")
LEGEND = "legend.png"
BAND = 2**22  # pixels that are coloured at a time


def main() -> None:
    """The command."""
    options = arguments()
    images = named(options.images, options.out)
    check_out(options.out, images)
    from pipeline.evaluation.pictures import legend, save
    from pipeline.release.predictor import Predictor

    predictor = Predictor.load(
        options.run, seed=options.seed, device=options.device, scales=options.scales, flip=options.flip,
        short_side=options.short_side, window=options.window,
    )  # fmt: skip
    save(legend(predictor.classes, predictor.palette), options.out / LEGEND)  # before the work: the folder may refuse
    skipped = []
    for name, file in track(images.items(), len(images), f"predict with {options.run}", unit="images"):
        try:
            image = predictor.image(file)
        except UserError as error:
            skipped.append(file)
            print(f"skipped: {file}: {error}", file=sys.stderr)
            continue
        # What cannot be written ends the work: a full disk would take every image.
        write(predictor, image, file, options.out / name, probabilities=options.probabilities)
        del image
    print(f"{len(images) - len(skipped)} of {len(images)} images predicted > {options.out}")
    if skipped:
        raise SystemExit(1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="uv run python -m stages.predict", description="Predict images with a finished run.",
        usage="%(prog)s --run RUN IMAGES... --out DIR [options]",
    )  # fmt: skip
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or patterns")
    parser.add_argument(
        "--run", required=True, help="a run of runs/ or its folder, a weights file (.pt), an export, or models:/NAME/VERSION"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the predictions go")
    parser.add_argument("--seed", type=int, help="which seed of the run; the first one otherwise")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; a GPU otherwise, where there is one")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these scales")
    parser.add_argument("--flip", action="store_true", help="average over mirrored images too")
    parser.add_argument("--short-side", type=int, metavar="PIXELS", help="fit images to this first, as some evaluations do")
    parser.add_argument("--window", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="slide a window, as for large images anyway")
    parser.add_argument("--probabilities", action="store_true", help="write the classes' probabilities too")
    return parser.parse_args()


def named(patterns: Sequence[str], out: Path) -> dict[str, Path]:
    """The image files by the names of their predictions: their own without suffix, with it where two would be the same."""
    found: dict[Path, Path] = {}  # the file, and its name below the folder that was given
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            hint = " (in a pattern, [[] stands for a name's own [)" if "[" in pattern else ""
            raise UserError(f"{pattern}: there is no such file, folder or pattern's match{hint}")
        for match in matches:
            found |= {file: file.relative_to(match) for file in inside(match, out)} if match.is_dir() else {match: Path(match.name)}
    if not found:
        raise UserError(f"no images in {', '.join(patterns)}; known suffixes: {' '.join(sorted(SUFFIXES))}")
    stems = Counter(name.with_suffix("") for name in found.values())
    names: dict[str, Path] = {}
    for file, name in found.items():
        chosen = str(name.with_suffix("") if stems[name.with_suffix("")] == 1 else name)
        if chosen in names:
            raise UserError(f"{names[chosen]} and {file} would both be called {chosen}: predict them one by one, each with its own --out")
        names[chosen] = file
    return names


def inside(folder: Path, out: Path) -> list[Path]:
    """The images in a folder, without those in `out`, where that lies in it: they are predictions."""
    whole, below = folder.resolve(), out.resolve()
    ours = folder / below.relative_to(whole) if whole in below.parents else None
    return [
        file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and ours not in file.parents and not file.is_dir()
    ]


def check_out(out: Path, images: Mapping[str, Path]) -> None:
    """Refuse a folder that is a file, or where a prediction would take the place of an image."""
    if out.is_file():
        raise UserError(f"--out {out} is a file: name a folder")
    files = {file.resolve() for file in images.values()}
    for goal in (out / LEGEND, *(out / f"{name}{ending}" for name in images for ending in ENDINGS)):
        if goal.resolve() in files:
            raise UserError(f"{goal} is one of the images, and a prediction would take its place: name another folder as --out")


def write(predictor: "Predictor", image: "Image.Image", file: Path, goal: Path, *, probabilities: bool) -> None:
    """Predict the image of a file and write its files, each whole or not at all; the image becomes its overlay."""
    from PIL import Image

    from pipeline.evaluation.pictures import coloured, indexed, save
    from pipeline.ground import files

    told = progress_in(file)
    labels, overlay, planar = (goal.with_name(goal.name + ending) for ending in ENDINGS)
    try:
        if probabilities:
            with files.replacing(planar) as writer:
                ids_HW = predictor(image, planes(writer, (len(predictor.classes), image.height, image.width)), told)
        else:
            ids_HW = predictor(image, told=told)
    except Exception as error:
        if words(error) != MEMORY:
            raise
        raise UserError(f"{file}: out of GPU memory: take smaller windows (--window 512 512), fewer --scales or --device cpu") from None
    save(indexed(ids_HW, predictor.palette), labels)
    step = max(1, BAND // image.width)
    for top in range(0, image.height, step):  # in place and by bands: a large image's colours are as large as the image
        band_HW = ids_HW[top : top + step]
        box = (0, top, image.width, top + len(band_HW))
        image.paste(Image.blend(image.crop(box), Image.fromarray(coloured(band_HW, predictor.palette)), 0.5), box)
    image.info.clear()  # a profile of the file's colours, which may be inks or greys, would tint the classes'
    save(image, overlay)


def progress_in(file: Path) -> Callable[[str, int, int], None]:
    """What tells of a large image's parts, now and then: it may take minutes."""
    said, first = time.monotonic(), {}

    def told(what: str, done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        began, before = first.setdefault(what, (now, done))
        if now - said >= PLAIN_SECONDS and before < done < total:
            said = now
            left = (now - began) / (done - before) * (total - done)
            print(f"{file}: {done}/{total} {what}, {left:.0f} s left", file=sys.stderr, flush=True)

    return told


def planes(writer: IO[bytes], shape: tuple[int, int, int]) -> Callable[[int, "Tensor"], None]:
    """What writes rows of all classes to where a float16 .npy array of `shape` has them, so that the whole is never in memory."""
    import numpy as np

    np.lib.format.write_array_header_1_0(writer, {"descr": "<f2", "fortran_order": False, "shape": shape})
    first, (_, height, width) = writer.tell(), shape

    def keep(start: int, values_KRW: "Tensor") -> None:
        for number, plane_RW in enumerate(values_KRW.cpu().numpy().astype("<f2")):
            writer.seek(first + 2 * width * (number * height + start))
            writer.write(plane_RW.tobytes())

    return keep


if __name__ == "__main__":
    raise SystemExit(run(main))
