"""Export a finished run for other programs: `uv run python -m stages.export --run ecrf --out DIR`.

DIR gets model.onnx, model.pt2 (torch.export) and model.safetensors with config.json, and README.md, their card. ONNX and
torch.export are run again and compared with the network on images of the dataset. With --register NAME the weights also become a
version of NAME in MLflow's registry.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from stages.command import run

FORMATS = ("onnx", "torch", "safetensors")
INSTALL = "`uv sync --extra onnx`, or `pip install onnx onnxruntime onnxscript`, installs it"


def main() -> None:
    """The command."""
    options = arguments()
    if options.register and options.format and "safetensors" not in options.format:
        raise UserError("--register needs safetensors among the formats: the registry gets them")
    from pipeline.release import graph
    from pipeline.release.export import Order, export

    chosen = formats(options.format, graph.missing_libraries())
    for line in export(Order(options.run, options.seed, options.out, chosen, tuple(options.images or ()))):
        print(line, flush=True)
    if options.register:
        from pipeline.release import registry

        print(registry.register(options.out, options.register))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.export", description="Export a finished run for other programs.")
    parser.add_argument("--run", required=True, help="a run of runs/, a weights file (.pt), an export, or models:/NAME/VERSION")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the files go")
    parser.add_argument("--seed", type=int, help="which seed of the run; the first one otherwise")
    parser.add_argument("--format", nargs="+", choices=FORMATS, help="all that are installed otherwise")
    parser.add_argument("--images", nargs="+", metavar="IMAGES", help="check on these, not on images of the dataset")
    parser.add_argument("--register", metavar="NAME", help="make the weights a version of NAME in MLflow's registry")
    return parser.parse_args()


def formats(asked: Sequence[str] | None, missing: Sequence[str]) -> tuple[str, ...]:
    """What is to be written; ONNX, unless asked for, only where it is installed."""
    if missing and asked and "onnx" in asked:
        raise UserError(f"--format onnx needs {', '.join(missing)}: {INSTALL}")
    if missing and not asked:
        warn(f"model.onnx is left out, for {', '.join(missing)} is not there: {INSTALL}")
    return tuple(name for name in FORMATS if (name in asked if asked else name != "onnx" or not missing))


if __name__ == "__main__":
    raise SystemExit(run(main))
