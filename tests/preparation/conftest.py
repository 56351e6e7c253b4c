"""A user's own pairs, for the tests of preparing."""

from pathlib import Path

import numpy as np
import pytest
from makers.own_pairs import RNG
from PIL import Image


@pytest.fixture
def own(workspace: Path) -> Path:
    """Six pairs of 8 x 12 in `own`: classes a and b."""
    for place in range(6):
        (workspace / "own" / "images").mkdir(parents=True, exist_ok=True)
        (workspace / "own" / "masks").mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 12, 3), np.uint8)).save(workspace / "own" / "images" / f"{place}.png")
        Image.fromarray(RNG.integers(0, 2, (8, 12), np.uint8)).save(workspace / "own" / "masks" / f"{place}.png")
    return workspace / "own"
