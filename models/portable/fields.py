"""Plain forms of mean field and ConvCRF (models/crf, which has the equations)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.crf.conv import Conv, features_of, grid, scalar, tensor
from models.crf.mean_field import MeanField, normalised
from models.filters.field import TINY
from models.parts.layers import size_of


class PlainMeanField(nn.Module):
    """The bilateral kernel as one matrix: its memory is 4 bytes times the square of the pixels at the logits' stride."""

    def __init__(self, source: MeanField) -> None:
        super().__init__()
        if (filtering := source.options["filtering"]) != "exact":
            raise ValueError(
                f"crf mean_field: filtering: {filtering} builds its lattice from the image, which no graph holds; "
                "exact filtering is another result"
            )
        self.source = source

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits_BKhw, nothing more)."""
        source, field = self.source, self.source.field
        unary_BKhw = source.classifier(source.dropout(features_BChw))
        (h, w), (H, W) = size_of(unary_BKhw), size_of(image_B3HW)
        area, small = (torch.full((), side, dtype=unary_BKhw.dtype, device=unary_BKhw.device) for side in (H * W, h * w))
        now = source.now((area / small).sqrt())
        near_KK, alike_KK = (_matrix(field["compatibility"]) @ _matrix(field[f"{kind}_weight"]) for kind in ("spatial", "bilateral"))
        image_B3hw = 255 * F.interpolate(image_B3HW, (h, w), mode="bilinear")
        places_2hw = grid((h, w), unary_BKhw) / now["theta_alpha"]
        colours_B3hw = image_B3hw / now["theta_beta"]
        kernel_BNN = torch.exp(-0.5 * (_squares(places_2hw[None].flatten(2)) + _squares(colours_B3hw.flatten(2))))
        rows_hh, columns_ww = (_gaussian(side, now["theta_gamma"], unary_BKhw) for side in (h, w))

        def near(values_BVN: Tensor) -> Tensor:
            along_BVhw = _last(values_BVN.unflatten(2, (h, w)), columns_ww)
            return _last(along_BVhw.transpose(2, 3), rows_hh).transpose(2, 3).flatten(2)

        def alike(values_BVN: Tensor) -> Tensor:
            return torch.bmm(values_BVN, kernel_BNN)

        unary_BKN = unary_BKhw.flatten(2)
        ones_B1N = torch.ones_like(unary_BKN[:, :1])
        near_normal, alike_normal = (normalised(kernel, ones_B1N, now["normalization"]) for kernel in (near, alike))
        scores_BKN = unary_BKN
        for _ in range(now["iterations"]):
            q_BKN = scores_BKN.softmax(1)
            scores_BKN = unary_BKN + _times(near_KK, near_normal(q_BKN)) + _times(alike_KK, alike_normal(q_BKN))
        return scores_BKN.unflatten(2, (h, w)), {}


def _matrix(weight_KK: Tensor) -> Tensor:
    """The matrix itself, or the one that a diagonal K stands for."""
    return weight_KK if weight_KK.ndim == 2 else weight_KK.diag()


def _times(weight_KK: Tensor, message_BKN: Tensor) -> Tensor:
    """The matrix times each pixel's message, as a convolution: a product of two and three axes would fix the batch."""
    return F.conv1d(message_BKN, weight_KK[:, :, None])


def _last(x_BVij: Tensor, matrix_jj: Tensor) -> Tensor:
    """The product along the last axis, image by image, for the same reason."""
    product_Bnj = torch.bmm(x_BVij.flatten(1, 2), matrix_jj[None].expand(x_BVij.shape[0], -1, -1))
    return product_Bnj.unflatten(1, x_BVij.shape[1:3])


def _gaussian(length: int, theta: Tensor, like: Tensor) -> Tensor:
    places_N = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.exp(-0.5 * ((places_N[:, None] - places_N) / theta).square())


def _squares(points_BDN: Tensor) -> Tensor:
    """|f_i - f_j|^2 of all pairs, differences first: expanded squares of scaled colours lose float32's digits."""
    along_DBN = points_BDN.unbind(1)
    return torch.stack([(along_BN[:, :, None] - along_BN[:, None, :]).square() for along_BN in along_DBN]).sum(0)


class PlainConv(nn.Module):
    """ConvCRF whose windows are unfolded: filter_size^2 copies of the blurred maps."""

    def __init__(self, source: Conv) -> None:
        super().__init__()
        self.source, self.blur = source, source.options["blur"]

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor, superpixels_BHW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(scores_BKHW at the image's size divided by `stride`, nothing more)."""
        source, field, now = self.source, self.source.field, self.source.now()
        unary_BKhw = source.classifier(source.dropout(features_BChw))
        height, width = ((side + source.stride - 1) // source.stride for side in size_of(image_B3HW))
        log_BKHW = F.interpolate(unary_BKhw, (height, width), mode="bilinear").log_softmax(1)
        image_BCHW = 255 * F.interpolate(image_B3HW, (height, width), mode="bilinear")
        features = features_of(image_BCHW, now["theta_beta"], now["theta_gamma"], now["theta_alpha"], field.get("position"))
        weights = [scalar(now[name], log_BKHW) for name in ("appearance", "smoothness")]
        terms = self.terms([self.lowered(feature_BCHW) for feature_BCHW in features], weights, log_BKHW)
        share_K11 = tensor(now["weight"], log_BKHW).reshape(-1, 1, 1)
        scores_BKHW = log_BKHW
        for step in range(now["iterations"]):
            q_BKHW = scores_BKHW.softmax(1) if step or now["start"] == "softmax" else log_BKHW
            message_BKHW = torch.zeros_like(q_BKHW)
            for kernel_BThw, root_B1HW, weight in terms:
                m_BKhw = self.filtered(self.lowered(root_B1HW * q_BKHW), kernel_BThw)
                if "compatibility" in field:
                    m_BKhw = m_BKhw + (field["compatibility"] @ m_BKhw.flatten(2)).view_as(m_BKhw)
                message_BKHW = message_BKHW + root_B1HW * self.raised(weight * m_BKhw, q_BKHW)
            scores_BKHW = (1 - share_K11) * log_BKHW + share_K11 * message_BKHW
        return scores_BKHW, {}

    def terms(self, features: list[Tensor], weights: list[Tensor], like_BKHW: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(kernel BThw, D^-1/2 B1HW, weight) of what is filtered by itself: both kernels together where nothing is normalised."""
        kernels = [self.kernel(feature_BChw) for feature_BChw in features]
        ones_B1HW, one = torch.ones_like(like_BKHW[:, :1]), torch.ones_like(weights[0])
        if self.source.options["normalization"] == "none":
            return [(weights[0] * kernels[0] + weights[1] * kernels[1], ones_B1HW, one)]
        found = []
        for kernel_BThw, weight in zip(kernels, weights, strict=True):
            sums_B1hw = self.filtered(torch.ones_like(kernel_BThw[:, :1]), kernel_BThw)
            found.append((kernel_BThw, (self.raised(sums_B1hw, like_BKHW) + TINY).rsqrt(), weight))
        return found

    def kernel(self, feature_BChw: Tensor) -> Tensor:
        """exp(-|f(i) - f(j)|^2 / 2) of each tap: BThw. What a tap finds beside the image meets values of 0."""
        differences_BCThw = self.taps(feature_BChw) - feature_BChw[:, :, None]
        return torch.exp(-0.5 * differences_BCThw.square().sum(1))

    def filtered(self, q_BKhw: Tensor, kernel_BThw: Tensor) -> Tensor:
        """K q: BKhw."""
        return (self.taps(q_BKhw) * kernel_BThw[:, None]).sum(2)

    def taps(self, x_BChw: Tensor) -> Tensor:
        """The map as each tap of the window finds it, 0 outside: B, C, T, h, w."""
        size = self.source.options["filter_size"]
        unfolded_BNL = F.unfold(x_BChw, size, padding=size // 2)
        return unfolded_BNL.unflatten(1, (x_BChw.shape[1], size**2)).unflatten(3, size_of(x_BChw))

    def lowered(self, x_BCHW: Tensor) -> Tensor:
        """Means over blocks of blur x blur pixels, over the pixels that there are."""
        factor = self.blur
        if factor == 1:
            return x_BCHW
        missing = self.missing(x_BCHW)
        present_11HW = F.pad(torch.ones_like(x_BCHW[:1, :1]), missing)
        return F.avg_pool2d(F.pad(x_BCHW, missing), factor) / F.avg_pool2d(present_11HW, factor)

    def raised(self, x_BChw: Tensor, like_BCHW: Tensor) -> Tensor:
        """Bilinear interpolation back to full size, by the two rows and columns that each pixel lies between."""
        if self.blur == 1:
            return x_BChw
        left, _, above, _ = self.missing(like_BCHW)
        for axis, before in ((2, above), (3, left)):
            place = (torch.arange(like_BCHW.shape[axis], device=x_BChw.device, dtype=x_BChw.dtype) + before + 0.5) / self.blur - 0.5
            place, last = place.clamp(min=0), x_BChw.shape[axis] - 1
            low = place.long()
            share = (place - low).unflatten(0, (-1, 1)) if axis == 2 else place - low
            x_BChw = torch.lerp(x_BChw.index_select(axis, low), x_BChw.index_select(axis, (low + 1).clamp(max=last)), share)
        return x_BChw

    def missing(self, x_BCHW: Tensor) -> tuple[int, int, int, int]:
        """What is missing to whole blocks: (left, right, above, below)."""
        rows, columns = ((-length) % self.blur for length in size_of(x_BCHW))
        left, above = (columns + 1) // 2, (rows + 1) // 2
        return left, columns - left, above, rows - above
