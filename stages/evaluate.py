"""Evaluate a run: `uv run python -m stages.evaluate NAME`.

Predicts a split with every published seed at a single scale and at several with flips, and writes results/NAME.json and
results/NAME/pictures.
"""

import argparse
from typing import Any

from pipeline.ground import files
from pipeline.settings import config
from stages.check import check, check_prepared
from stages.command import run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.evaluate", description="Evaluate a run of params.yaml.")
    parser.add_argument("name", help="a key of `evaluations` in params.yaml")
    name = parser.parse_args().name
    params = config.load()
    evaluation = config.find(params.evaluations, name, "evaluations", params.path)
    check(params)
    check_prepared(params)

    from cluster import launch
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.record import RESULTS

    launch(evaluate, evaluation)
    file = RESULTS / f"{name}.json"
    print(table(files.read_json(file, f"run `uv run python -m stages.evaluate {name}`")))
    print(f"{name}: results in {file}, pictures in {RESULTS / name / 'pictures'}")


def table(results: dict[str, Any]) -> str:
    """A results file as a few lines for people, in percent."""
    radii = sorted(results["single_scale"]["boundary_f"], key=int)
    lines = [f"{results['evaluation']}: {results['images']} images of {results['dataset']} {results['split']}, seeds {results['seeds']}"]
    lines.append(f"{'':>18}{'mIoU':>8}{'pixels':>8}{'classes':>8}" + "".join(f"{f'F {radius}px':>8}" for radius in radii))
    for protocol, title in (("single_scale", "single scale"), ("multi_scale_flip", "multi-scale, flip")):
        values = results[protocol]
        shown = [values["miou"], values["pixel_accuracy"], values["mean_accuracy"]]
        shown += [values["boundary_f"][radius]["present"] for radius in radii]
        lines.append(f"{title:>18}" + "".join(f"{'-' if value is None else f'{100 * value:.2f}':>8}" for value in shown))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(main))
