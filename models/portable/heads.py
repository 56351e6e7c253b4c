"""Plain forms of what heads are made of (models/heads, which has the equations)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads.attention import SelfAttention
from models.heads.caa import AxialAttention, FullAttention, Gate
from models.heads.decoupled import SMALLEST, BodyEdge
from models.heads.ksac import Pyramid
from models.parts.layers import PyramidPooling, region_means_by_products, size_of


class PlainPyramid(nn.Module):
    """KSAC's rates as dilated convolutions with the one kernel."""

    def __init__(self, source: Pyramid) -> None:
        super().__init__()
        self.source = source

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW."""
        source = self.source
        kernels = list(source.convs) * (len(source.rates) if source.shared else 1)
        total_BCHW = torch.zeros_like(x_BCHW[:, :1])
        for rate, conv, norm in zip(source.rates, kernels, source.norms, strict=True):
            total_BCHW = total_BCHW + norm(F.conv2d(x_BCHW, conv.get_parameter("weight"), padding=rate, dilation=rate))
        return total_BCHW


class PlainPyramidPooling(nn.Module):
    """Means over regions as matrix products: an exported adaptive pooling would have one size."""

    def __init__(self, source: PyramidPooling) -> None:
        super().__init__()
        self.source = source

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The stage's own channels first: B, channels, H, W."""
        pooled = [
            F.interpolate(conv(region_means_by_products(x_BCHW, side)), size_of(x_BCHW), mode="bilinear")
            for side, conv in zip(self.source.bins, self.source.convs, strict=True)
        ]
        return torch.cat([x_BCHW, *pooled], dim=1)


class PlainAvgPoolSame(nn.Module):
    """timm's average pooling with padding "same", in whole numbers alone: .pt2 files have no ceil."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source: Any = source

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BC and, divided by the stride and rounded up, H and W."""
        source, missing = self.source, []
        for length, kernel, stride in zip(size_of(x_BCHW)[::-1], source.kernel_size[::-1], source.stride[::-1], strict=True):
            total = kernel - 1 if stride == 1 else torch.sym_max(((length + stride - 1) // stride - 1) * stride + kernel - length, 0)
            missing += [total // 2, total - total // 2]
        padded_BCHW = F.pad(x_BCHW, missing)
        return F.avg_pool2d(padded_BCHW, source.kernel_size, source.stride, source.padding, source.ceil_mode, source.count_include_pad)


class PlainBodyEdge(nn.Module):
    """Body and edge without branches on the map's size."""

    def __init__(self, source: BodyEdge) -> None:
        super().__init__()
        self.source = source

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(body_BCHW, edge_BCHW)."""
        wide_BCHW = features_BCHW
        for axis in (2, 3):  # rows and columns repeated on both sides to SMALLEST, none where there are as many
            length = features_BCHW.shape[axis]
            longer = torch.sym_max(length, SMALLEST)
            index = torch.arange(longer, device=features_BCHW.device) - (longer - length) // 2
            wide_BCHW = wide_BCHW.index_select(axis, index.clamp(0, length - 1))
        coarse_BCHW = F.interpolate(self.source.down(wide_BCHW), size_of(features_BCHW), mode="bilinear", align_corners=True)
        flow_B2HW = self.source.flow(torch.cat([features_BCHW, coarse_BCHW], dim=1))
        height, width = size_of(features_BCHW)
        y_H, x_W = (_corners(side, flow_B2HW) for side in (height, width))
        grid_BHW2 = torch.stack([x_W + flow_B2HW[:, 0] / width, y_H[:, None] + flow_B2HW[:, 1] / height], dim=-1)
        body_BCHW = F.grid_sample(features_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=True)
        return body_BCHW, features_BCHW - body_BCHW


def _corners(length: int, like: Tensor) -> Tensor:
    """`linspace(-1, 1, length)`, whose length an export would fix."""
    step: Any = 2 / torch.sym_max(length - 1, 1)
    return torch.arange(length, device=like.device, dtype=like.dtype) * step - 1


class PlainSelfAttention(nn.Module):
    """All pairs of pixels at once."""

    def __init__(self, source: SelfAttention) -> None:
        super().__init__()
        self.source = source

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW of the values."""
        source = self.source
        query_BND, key_BND, value_BNC = (conv(x_BCHW).flatten(2).transpose(1, 2) for conv in (source.query, source.key, source.value))
        return _attended(query_BND, key_BND, value_BNC, x_BCHW)


class PlainAxialAttention(nn.Module):
    """Columns, then rows, with CAA's gates: the source's regions without autocast cannot be written to a .pt2 file."""

    def __init__(self, source: AxialAttention) -> None:
        super().__init__()
        self.source = source

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW of the values."""
        source, (height, width) = self.source, size_of(x_BCHW)
        columns_BWHD, rows_BHWD = source.query_column(x_BCHW).permute(0, 3, 2, 1), source.query_row(x_BCHW).permute(0, 2, 3, 1)
        seen_BHWC = _along_rows(columns_BWHD, source.value(x_BCHW).permute(0, 3, 2, 1)).transpose(1, 2)
        y_BHWC = _along_rows(rows_BHWD, seen_BHWC)
        if source.column_gate is not None:
            y_BHWC = y_BHWC * _gated(source.column_gate, seen_BHWC.sum(2) / (height * width))[:, :, None]
        if source.row_gate is not None:
            y_BHWC = y_BHWC * _gated(source.row_gate, y_BHWC.sum(1) / (height * width))[:, None]
        return y_BHWC.permute(0, 3, 1, 2)


def _along_rows(query_BijD: Tensor, value_BijC: Tensor) -> Tensor:
    """Attention along the axis j alone; as a product of matrices in one long batch, which an export does not fix."""
    query_XjD, value_XjC = query_BijD.contiguous().flatten(0, 1), value_BijC.contiguous().flatten(0, 1)
    y_XjC = torch.bmm(torch.bmm(query_XjD, query_XjD.transpose(1, 2)).softmax(-1), value_XjC)
    return y_XjC.unflatten(0, value_BijC.shape[:2])


class PlainFullAttention(nn.Module):
    """All pairs of pixels at once, with CAA's gate."""

    def __init__(self, source: FullAttention) -> None:
        super().__init__()
        self.source = source

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW of the values."""
        query_BND, value_BNC = (conv(x_BCHW).flatten(2).transpose(1, 2) for conv in (self.source.query, self.source.value))
        y_BCHW = _attended(query_BND, query_BND, value_BNC, x_BCHW)
        if self.source.gate is None:
            return y_BCHW
        height, width = size_of(x_BCHW)
        y_BHWC = y_BCHW.permute(0, 2, 3, 1)
        return (y_BHWC * _gated(self.source.gate, y_BHWC / (height * width))).permute(0, 3, 1, 2)


def _gated(gate: Gate, sums_XC: Tensor) -> Tensor:
    return nn.Sequential.forward(gate, sums_XC)  # without its own region without autocast


def _attended(query_BND: Tensor, key_BND: Tensor, value_BNC: Tensor, like_BCHW: Tensor) -> Tensor:
    y_BNC = (query_BND @ key_BND.transpose(1, 2)).softmax(-1) @ value_BNC
    return y_BNC.transpose(1, 2).unflatten(2, size_of(like_BCHW))
