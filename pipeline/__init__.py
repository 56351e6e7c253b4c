"""What preparing, training and evaluating mean. Imports `models` and nothing above."""

import os

# torch reads this when it is imported. Each rank would warn that no parameter went unused: we look for them for the order of sums.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
