"""Train a method: `uv run python -m stages.train NAME`.

Every seed that params.yaml asks for and that is not finished yet is trained, going on from its last checkpoint; then all are
published as runs/NAME/weights.
"""

from stages.command import run
from stages.training import train_command


def main() -> None:
    """The command."""
    train_command("train", "method")


if __name__ == "__main__":
    raise SystemExit(run(main))
