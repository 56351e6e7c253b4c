"""A user's own pairs, prepared from Python or by the command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from pipeline.data import prepared
from pipeline.datasets.folder import Folder
from pipeline.preparation import pairs as preparation

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def prepare(root: Path = Path("own"), **options) -> prepared.Prepared:
    published, _ = preparation.prepare(Folder(root, classes=["a", "b"], **options), "folder", Path("unused"))
    prepared.write(published)
    return published


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m stages.prepare` in the current folder, on the folder dataset."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] = {key: params["data"][key] for key in ("crop", "scale", "jitter")}
    params["data"] |= {"dataset": "folder", "root": "own", "classes": ["a", "b"]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([sys.executable, "-m", "stages.prepare", *arguments], env=environment, capture_output=True, text=True, timeout=60)
