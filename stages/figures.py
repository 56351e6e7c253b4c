"""Make the papers' figures from trained runs: `uv run python -m stages.figures`.

Writes figures/<figure>-<run>[-<image>].png and .svg and figures/index.md, as params.yaml's section `figures` says. Options draw some of
them otherwise, into a folder of their own: `uv run python -m stages.figures --only messages --pixel 70 90 --out scratch`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.ground.errors import UserError
from pipeline.settings import config
from pipeline.settings.config import read_figures
from pipeline.settings.schema import FIGURES, Params
from pipeline.settings.strict import Section, names, suggestion
from stages.command import run


def main() -> None:
    """The command."""
    options = arguments()
    params = chosen(config.load(), options)

    from pipeline.figures import write

    folder = options.out or write.FOLDER
    made, left_out = write.write(params, folder, options.only or ())
    for line in left_out:
        print(f"left out: {line}")
    print(f"{len(made)} figures, as PNG and SVG, with captions: {folder / 'index.md'}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.figures", description="Make the papers' figures from trained runs.")
    parser.add_argument("--only", nargs="+", metavar="FIGURE", help=f"these figures alone: {', '.join(FIGURES)}")
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="of these runs, with --only")
    parser.add_argument("--images", nargs="+", metavar="NAME", help="of these images")
    parser.add_argument("--pixel", nargs=2, type=int, metavar=("ROW", "COLUMN"), help="the pixel to look at")
    parser.add_argument("--seed", type=int, help="of this seed")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where they go")
    return parser.parse_args()


def chosen(params: Params, options: argparse.Namespace) -> Params:
    """The settings, with the options laid over them as strictly as they are read."""
    own = {key: getattr(options, key) for key in ("images", "pixel", "seed") if getattr(options, key) is not None}
    if options.runs and not options.only:
        raise UserError("--runs needs --only: which figures of these runs?")
    if (own or options.only) and options.out is None:
        raise UserError("figures/ holds what params.yaml says: give another folder for these, as in --out scratch")
    for name in options.only or ():
        if name not in FIGURES:
            raise UserError(f"--only: {name!r} is no figure{suggestion(name, FIGURES)}")
    own |= {"runs": {name: options.runs for name in options.only}} if options.runs else {}
    before = {key: getattr(params.figures, key) for key in names(type(params.figures))}
    section = Section({"figures": before | own}, Path("command line"))
    return replace(params, figures=read_figures(section, {**params.methods, **params.finetunes}))


if __name__ == "__main__":
    raise SystemExit(run(main))
