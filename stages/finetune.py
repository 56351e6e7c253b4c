"""Train a finetune: `uv run python -m stages.finetune NAME`, a run that starts from another one's weights."""

from stages.command import run
from stages.training import train_command


def main() -> None:
    """The command."""
    train_command("finetune", "finetune")


if __name__ == "__main__":
    raise SystemExit(run(main))
