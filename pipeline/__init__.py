"""What preparing, training, evaluating and comparing mean, in rooms: a room is what a stage depends on, and imports point down only.

From the top: search, release > figures > report > evaluation > runs > training, preparation, superpixels > datasets > labels,
download > data > settings, tracking > ground. `uv run lint-imports` holds them to it; dvc.yaml says which stage depends on which.
"""

import os

# torch reads this when it is imported. Each rank would warn that no parameter went unused: we look for them for the order of sums.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
