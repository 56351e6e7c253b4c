"""A classifier alone: every pixel by itself."""

from torch import Tensor, nn

from models.parts.layers import classifier


class Unary(nn.Module):
    """Dropout of whole channels, then a 1x1 convolution to the classes."""

    needs_superpixels = False
    extras = ()

    def __init__(self, channels: int, classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits_BKhw, nothing more)."""
        return self.classifier(self.dropout(features_BChw)), {}
