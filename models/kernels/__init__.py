"""GPU kernels in Triton, each beside the plain form that it must equal, and what they count on: precision and tiles.

They import nothing of ours but one another and flops.py, which only counts. Every weight depends on this folder: an edit here retrains.
"""

from functools import cache

import torch
from torch import Tensor

plain = False  # true: the plain forms everywhere, to compare with


def use_triton(x: Tensor) -> bool:
    """Whether operations on `x` have a Triton kernel here."""
    return x.is_cuda and not plain and _triton_works(x.device)


@cache
def _triton_works(device: torch.device) -> bool:
    from torch.utils._triton import has_triton

    return has_triton() and (torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0))
