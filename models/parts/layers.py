"""What several parts share: convolutions, a head's end, resizing, pooling, means over superpixels."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels.superpixels import segment_means, segments


class Output(NamedTuple):
    """What a network gives. The logits may have any resolution; `align_corners` is how to resize them."""

    logits_BKhw: Tensor
    features_BChw: Tensor
    extras: dict[str, Tensor]
    align_corners: bool = False


class End(NamedTuple):
    """A head's last convolution, which it leaves to `Projection`."""

    inputs: int
    outputs: int
    kernel: int = 3
    separable: bool = False


def conv_norm_act(inputs: int, outputs: int, kernel: int, *, dilation: int = 1, separable: bool = False) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU, at the input's size; separable: the same depthwise, then 1x1."""
    if separable:
        depthwise = _conv_norm_act(inputs, inputs, kernel, dilation, groups=inputs)
        return nn.Sequential(*depthwise, *_conv_norm_act(inputs, outputs, 1, 1, groups=1))
    return _conv_norm_act(inputs, outputs, kernel, dilation, groups=1)


def _conv_norm_act(inputs: int, outputs: int, kernel: int, dilation: int, groups: int) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def classifier(channels: int, classes: int) -> nn.Conv2d:
    """The 1x1 convolution from features to logits; small weights start every class at about the same probability."""
    conv = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class Projection(nn.Module):
    """The end convolution of a head, in one of two forms.

    end: convolution, norm, activation; its activation is both features and output.
    linear (CAR): features z is a 1x1 convolution with bias, without norm; output is a 1x1 convolution, norm, activation of z.
    """

    def __init__(self, end: End, form: Literal["end", "linear"] = "end") -> None:
        super().__init__()
        if form not in ("end", "linear"):
            raise ValueError(f"projection must be end or linear, not {form!r}")
        self.linear = nn.Conv2d(end.inputs, end.outputs, 1) if form == "linear" else None
        if self.linear is None:
            self.end = conv_norm_act(end.inputs, end.outputs, end.kernel, separable=end.separable)
        else:
            self.end = conv_norm_act(end.outputs, end.outputs, 1)
        self.channels = end.outputs

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(features_BCHW for the losses, output_BCHW for the crf)."""
        if self.linear is None:
            output_BCHW = self.end(x_BCHW)
            return output_BCHW, output_BCHW
        features_BCHW = self.linear(x_BCHW)
        return features_BCHW, self.end(features_BCHW)


class Undecayed(nn.ParameterDict):
    """Parameters that weight decay leaves alone: it would pull a CRF's kernel weights to 0 and its log bandwidths to a pixel."""


def from_stride_4(strides: Sequence[int]) -> list[int]:
    """The stages that feature pyramids are built of; finer ones, such as a stem's, are left out."""
    found = [index for index, stride in enumerate(strides) if stride >= 4]
    if not found:
        raise ValueError(f"needs a stage of stride 4 or more, the backbone has {list(strides)}")
    return found


def size_of(x: Tensor) -> tuple[int, int]:
    """(height, width) of a tensor whose last axes they are."""
    return x.shape[-2], x.shape[-1]


def must_be_deterministic(x: Tensor) -> bool:
    """Whether operations on `x` are to take forms without atomic additions: CUDA refuses the others in deterministic mode."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def resize(x_BCHW: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation to `size` (height, width), without antialiasing."""
    if size_of(x_BCHW) == tuple(size):
        return x_BCHW
    if must_be_deterministic(x_BCHW):
        return resize_by_products(x_BCHW, size, align_corners)
    return F.interpolate(x_BCHW, size, mode="bilinear", align_corners=align_corners)


def resize_by_products(x_BCHW: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """`resize` as two matrix products: its gradient is deterministic on CUDA, where interpolate's is not."""
    rows_hH = _interpolation(x_BCHW.shape[-2], size[0], align_corners, x_BCHW)
    columns_wW = _interpolation(x_BCHW.shape[-1], size[1], align_corners, x_BCHW)
    with torch.autocast(x_BCHW.device.type, enabled=False):  # it would make products, unlike interpolations, half precision
        return rows_hH @ (x_BCHW @ columns_wW.T)


def _interpolation(source: int, target: int, align_corners: bool, like: Tensor) -> Tensor:
    """The (target, source) matrix of linear interpolation."""
    steps = torch.arange(target, device=like.device, dtype=torch.float32)
    corners, centres = steps * ((source - 1) / max(target - 1, 1)), (steps + 0.5) * (source / target) - 0.5
    place = corners if align_corners else centres.clamp(min=0)
    low = place.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    fraction = (place - low)[:, None]
    below, above = (F.one_hot(index, source).float() for index in (low, high))
    return (below * (1 - fraction) + above * fraction).to(like.dtype)


class ImagePooling(nn.Sequential):
    """The image's mean through a 1x1 convolution, at every pixel. With one image alone its batch norm cannot be trained."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), conv_norm_act(channels, width, 1))

    def forward(self, input: Tensor) -> Tensor:
        """B, width, H, W."""
        return super().forward(input).expand(-1, -1, *size_of(input))


class ASPP(nn.Module):
    """Branches of `width` channels each: the image's mean, 1x1, and a dilated 3x3 for each rate."""

    def __init__(self, channels: int, width: int, rates: tuple[int, ...], separable: bool, pooling: bool) -> None:
        super().__init__()
        self.pool = ImagePooling(channels, width) if pooling else None
        self.point = conv_norm_act(channels, width, 1)
        self.atrous = nn.ModuleList(conv_norm_act(channels, width, 3, dilation=rate, separable=separable) for rate in rates)
        self.channels = width * (pooling + 1 + len(rates))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The branches side by side: B, channels, H, W."""
        pooled = [] if self.pool is None else [self.pool(x_BCHW)]
        return torch.cat([*pooled, self.point(x_BCHW), *(branch(x_BCHW) for branch in self.atrous)], dim=1)


class PyramidPooling(nn.Module):
    """PSPNet's context: a stage beside its means over bin x bin regions, each through a 1x1 convolution and back to the stage's size.

    smallest_batch: a bin of 1 leaves one value per channel and image, of which batch norm cannot be trained with one image.
    """

    def __init__(self, channels: int, width: int, bins: Sequence[int]) -> None:
        super().__init__()
        if not bins or min(width, *bins) < 1:
            raise ValueError(f"width and bins must be at least 1, not {width} and {list(bins)}")
        self.smallest_batch = 2 if 1 in bins else 1
        self.bins = tuple(bins)
        self.convs = nn.ModuleList(conv_norm_act(channels, width, 1) for _ in self.bins)
        self.channels = channels + width * len(self.bins)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The stage's own channels first: B, channels, H, W."""
        pooled = [conv(region_means(x_BCHW, side)) for side, conv in zip(self.bins, self.convs, strict=True)]
        return torch.cat([x_BCHW, *(resize(means_BCbb, size_of(x_BCHW)) for means_BCbb in pooled)], dim=1)


def region_means(x_BCHW: Tensor, side: int) -> Tensor:
    """Means over side x side regions, which overlap where `side` does not divide the map: BC, side, side."""
    if side > 1 and must_be_deterministic(x_BCHW):
        return region_means_by_products(x_BCHW, side)
    return F.adaptive_avg_pool2d(x_BCHW, side)


def region_means_by_products(x_BCHW: Tensor, side: int) -> Tensor:
    """`region_means` as two matrix products: its gradient is deterministic on CUDA, where adaptive pooling's is not."""
    rows_bH, columns_bW = (_regions(length, side, x_BCHW) for length in size_of(x_BCHW))
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return rows_bH @ (x_BCHW @ columns_bW.T)


def _regions(length: int, side: int, like: Tensor) -> Tensor:
    """The (side, length) matrix whose row i averages the places from floor(i length / side) to ceil((i + 1) length / side)."""
    place, region = torch.arange(length, device=like.device), torch.arange(side, device=like.device)[:, None]
    inside = (place >= region * length // side) & (place < ((region + 1) * length + side - 1) // side)
    inside = inside.to(torch.promote_types(like.dtype, torch.float32))
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


def resize_nearest(labels_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels of any integer type at `size`: source index floor(i * H / h), in float32 as in torch's mode "nearest"."""
    for axis, target in ((-2, size[0]), (-1, size[1])):
        source = labels_BHW.shape[axis]
        if source != target:
            steps = torch.arange(target, device=labels_BHW.device, dtype=torch.float32)
            index = (steps * torch.tensor(source / target, dtype=torch.float32)).floor().long().clamp(max=source - 1)
            labels_BHW = labels_BHW.index_select(axis, index)
    return labels_BHW


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself in float32 or float64, half precision in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def superpixel_mean(features_BCHW: Tensor, superpixels_BHW: Tensor) -> Tensor:
    """Each pixel's mean over the pixels of its image that share its label; 0 where the label is negative.

    features_BCHW: any float type (half precision is summed in float32); superpixels_BHW: any integers, of the features' size.
    The denominator is n + 1e-5, as released. Returns BCHW of the features' type.
    """
    if superpixels_BHW.shape != features_BCHW.shape[:1] + features_BCHW.shape[2:]:
        raise ValueError(f"superpixels {tuple(superpixels_BHW.shape)} do not fit features {tuple(features_BCHW.shape)}")
    return segment_means(features_BCHW, segments(superpixels_BHW))
