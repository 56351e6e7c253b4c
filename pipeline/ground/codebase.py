"""The code that runs: where it is, its commit, and the hash of a part of it."""

import hashlib
import json
import subprocess
from pathlib import Path

from pipeline.ground import files
from pipeline.ground.errors import UserError

ROOT = Path(__file__).parents[2]


def tree_hash(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's Python files with their names."""
    if path.is_file():
        return files.sha256(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist: a part of the tables in models/ must stand in a file of its name")
    listing = [(entry.relative_to(path).as_posix(), files.sha256(entry)) for entry in sorted(path.rglob("*.py"))]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def commit() -> str | None:
    """The commit of the code that runs, "+" after it where files that git knows differ.

    None where git does not know this code, as in the copy that a queued job runs from.
    """
    file = Path(__file__)
    asked = (
        ["ls-files", "--error-unmatch", file.name],
        ["rev-parse", "HEAD"],
        ["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"],
    )
    try:
        _, head, changes = (
            subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")
