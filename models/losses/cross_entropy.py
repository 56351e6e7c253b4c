"""Mean cross-entropy over the labelled pixels of the global batch, with the auxiliary branch's and the unary's.

Optionally weighted by class, or of each image's hard pixels alone (OHEM; see models/parts/entropy.py).
"""

from torch import Tensor

from models.parts.entropy import Entropy
from models.parts.layers import Output


class CrossEntropy:
    """`cross_entropy`, and where the output has them `auxiliary` (times auxiliary_weight) and `unary` (times unary_weight).

    class_weights: one for each class, in every term. ohem_threshold, ohem_min_kept: which pixels of the final logits count.
    """

    needs = ()

    def __init__(
        self,
        classes: int,
        auxiliary_weight: float,
        *,
        unary_weight: float = 1.0,
        class_weights: tuple[float, ...] | None = None,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 10000,
    ) -> None:
        self.entropy = Entropy("cross_entropy", classes, auxiliary_weight, unary_weight, class_weights, ohem_threshold, ohem_min_kept)

    def __call__(self, output: Output, labels_BHW: Tensor) -> dict[str, Tensor]:
        """The terms. labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them."""
        return self.entropy(output, labels_BHW)
