"""Soft noise in two steps: the few numbers that chance gives, and the picture that they are stretched to."""

import numpy as np


def waves(rng: np.random.Generator, across: int, down: int) -> np.ndarray:
    """The grid [down + 1, across + 1] of noise with about `across` x `down` waves, float32."""
    return rng.standard_normal((down + 1, across + 1), np.float32)


def stretched(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Soft noise of unit deviation or less, float32 [height, width], with as many waves as the grid has whatever the size."""
    down, across = grid.shape[0] - 1, grid.shape[1] - 1
    rows = np.linspace(0, down, height, dtype=np.float32)
    columns = np.linspace(0, across, width, dtype=np.float32)
    above, left = np.minimum(rows.astype(int), down - 1), np.minimum(columns.astype(int), across - 1)
    t_h1, t_w = (rows - above).astype(np.float32)[:, None], (columns - left).astype(np.float32)
    bands_hc = grid[above] * (1 - t_h1) + grid[above + 1] * t_h1
    return bands_hc[:, left] * (1 - t_w) + bands_hc[:, left + 1] * t_w
