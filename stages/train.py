"""Train a method: `uv run python -m stages.train NAME`.

Every seed that params.yaml asks for and that is not finished yet is trained, going on from its last checkpoint; then all are
published as runs/NAME/weights.
"""

import argparse

from stages.command import run
from stages.training import train_run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.train", description="Train a method of params.yaml.")
    parser.add_argument("name", help="a key of `methods` in params.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--overfit-one-batch", action="store_true", help="sanity check: learn one batch by heart, write nothing")
    options = parser.parse_args()
    train_run("methods", options.name, dry_run=options.dry_run, overfit=options.overfit_one_batch)


if __name__ == "__main__":
    raise SystemExit(run(main))
