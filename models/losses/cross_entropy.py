"""Mean cross-entropy over the labelled pixels of the global batch, with the auxiliary branch's and the unary's."""

from torch import Tensor

from models.entropy import branches, pixel_mean
from models.layers import Output


class CrossEntropy:
    """`cross_entropy`, and where the output has them `auxiliary` (times auxiliary_weight) and `unary` (times unary_weight)."""

    needs = ()

    def __init__(self, classes: int, auxiliary_weight: float, *, unary_weight: float = 1.0) -> None:
        if unary_weight < 0:
            raise ValueError(f"loss cross_entropy: unary_weight must not be negative, it is {unary_weight}")
        self.weights = {"auxiliary": auxiliary_weight, "unary": unary_weight}

    def __call__(self, output: Output, labels_BHW: Tensor) -> dict[str, Tensor]:
        """The terms. labels_BHW: class ids at the image's size, 255 is ignored; logits of any size are resized to them."""
        terms = {"cross_entropy": pixel_mean(output.logits_BKhw, labels_BHW, output.align_corners)}
        return terms | branches(output, labels_BHW, self.weights)
