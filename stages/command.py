"""How every command ends: a user's mistake is one line and status 2; a stage that DVC started dies with DVC."""

import os
import sys
from collections.abc import Callable

from pipeline.ground.errors import words
from pipeline.ground.lifeline import die_with_starter


def run(main: Callable[[], None]) -> int:
    """Call a command's `main` and return its exit status."""
    if os.environ.get("DVC_STAGE"):  # by hand (nohup, tmux) a command may outlive the shell that started it
        die_with_starter("DVC_STAGE")
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted: run the same command again (a training goes on from its last checkpoint)", file=sys.stderr)
        return 130
    except Exception as error:
        if (line := words(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0
