"""The code as it is now, copied beside the runs: a job that waits runs what was submitted, whatever is edited meanwhile.

    runs/.code/<hash>/      the code that git tracks or would track, found again by its content; whole or not there

Jobs of the same code share a copy, and a job that is queued again runs its own. A copy may be deleted when no job needs it.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.ground import files
from pipeline.ground.codebase import ROOT, tree_hash
from pipeline.ground.errors import UserError, explained, refusal
from pipeline.settings.schema import Config

COPIES = Path("runs/.code")
PACKAGES = ("models", "pipeline", "cluster", "stages")
LIST = "dvc.yaml"  # it says which code a result depends on
ABOUT = ("tests", "benchmarks", "docs")  # nothing that a job runs


def snapshot(root: Path = ROOT) -> Path:
    """The absolute folder with a copy of the code under `root`; UserError where it cannot be written."""
    code = {name: (root / name).read_bytes() for name in sorted(code_names(root)) if (root / name).is_file()}
    goal = (COPIES / digest(code)).absolute()
    if not goal.is_dir():
        try:
            write(goal, code)
        except OSError as error:
            if (cause := refusal(error)) is None:
                raise
            raise explained(cause, f"cannot write {goal}") from error
    return goal


def refuse_other_code(config: Config, code: Path) -> None:
    """A copy must hold the code that a stamped config's fingerprint speaks of; UserError where that was edited in between."""
    assert config.inputs is not None
    for path, known in config.inputs.code.items():
        if tree_hash(code / path) != known:
            raise UserError(f"{path} was edited while {config.name} was being submitted: run it again")


def digest(code: Mapping[str, bytes]) -> str:
    """Sixteen hexadecimal digits that name files by their names and content."""
    listing = [(name, hashlib.sha256(content).hexdigest()) for name, content in code.items()]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def code_names(root: Path) -> Iterable[str]:
    """The packages' files and other Python files, relative to `root`; without git, the packages and the Python files beside them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout.decode(errors="surrogateescape")
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    names = {name for name in listed.split("\0") if is_code(name)}
    if not any(name.startswith("pipeline/") for name in names):  # no git, or a folder that another repository ignores
        found = [*root.glob("*.py"), *root.glob(LIST), *(path for package in PACKAGES for path in (root / package).rglob("*"))]
        names = {path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts and path.suffix != ".pyc"}
    return names


def is_code(name: str) -> bool:
    """Whether a job may need a file: one of the packages, the list of what depends on what, or Python of a user's own, but no image."""
    top = name.split("/", 1)[0]
    return top in PACKAGES or name == LIST or (name.endswith(".py") and top not in ABOUT)


def write(goal: Path, code: Mapping[str, bytes]) -> None:
    """Write the files to a folder that becomes `goal` when all are on the disk."""
    temporary = goal.with_name(f".{goal.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        for name, content in code.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        files.flush(temporary / name for name in code)
        if not goal.is_dir():
            temporary.rename(goal)
            files.sync(goal.parent)
    except OSError:
        if not goal.is_dir():  # another one has written the same meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
