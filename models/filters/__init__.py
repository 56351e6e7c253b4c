"""Gaussian filtering of values: dense on a set of points (exact, and on the permutohedral lattice), along axes, and in a window.

The filters import parts and kernels. Every weight depends on this folder: an edit here retrains.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from models.filters.exact import Exact
from models.filters.permutohedral import Permutohedral


class Filter(Protocol):
    """Built from features_BDN, of N points in D dimensions; what depends on them alone is computed once."""

    def __call__(self, values_BVN: Tensor, /) -> Tensor:
        """The sum over j of exp(-|f_i - f_j|^2 / 2) v_j, itself included, not normalised: BVN."""


FILTERS: Mapping[str, Callable[[Tensor], Filter]] = {"exact": Exact, "permutohedral": Permutohedral}
