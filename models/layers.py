"""What several parts share: convolutions, resizing, a head's end, pyramid pooling, means over superpixels, batch norm over ranks."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.kernels.superpixels import segment_means, segments
from models.reductions import all_gather, all_sum, world_size


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


class ASPP(nn.Module):
    """Branches of `width` channels each: the image's mean, 1x1, and a dilated 3x3 for each rate."""

    def __init__(self, channels: int, width: int, rates: tuple[int, ...], separable: bool, pooling: bool) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm_act(channels, width, 1)) if pooling else None
        self.point = conv_norm_act(channels, width, 1)
        self.atrous = nn.ModuleList(conv_norm_act(channels, width, 3, dilation=rate, separable=separable) for rate in rates)
        self.channels = width * (pooling + 1 + len(rates))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The branches side by side: B, channels, H, W."""
        pooled = [] if self.pool is None else [self.pool(x_BCHW).expand(-1, -1, *x_BCHW.shape[-2:])]
        return torch.cat([*pooled, self.point(x_BCHW), *(branch(x_BCHW) for branch in self.atrous)], dim=1)


class PyramidPooling(nn.Module):
    """PSPNet's context: a stage beside its means over bin x bin regions, each through a 1x1 convolution and back to the stage's size.

    Batch norm cannot be trained with one image where a bin is 1, which leaves one value per channel and image.
    """

    def __init__(self, channels: int, width: int, bins: Sequence[int]) -> None:
        super().__init__()
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


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the pixels of all ranks, differentiable on any backend (torch's own refuses CPU tensors).

    Takes over the parameters and buffers of `norm`, and what a fused norm-activation layer applies after itself.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in norm.named_children():
            self.add_module(name, child)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Images BCHW normalised; in training mode every rank must take part."""
        if self.training or self.running_mean is None:
            y_BCHW, mean_C, variance_C, count = _GlobalNorm.apply(input, self.weight, self.bias, self.eps)
            if self.training and self.running_mean is not None:
                self._track(mean_C, variance_C, count)
        else:
            y_BCHW = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        for child in self.children():
            y_BCHW = child(y_BCHW)
        return y_BCHW

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        """Running statistics as torch keeps them: the unbiased variance, a cumulative mean where momentum is null."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance_C * (count / (count - 1))).to(self.running_var.dtype), momentum)


class _GlobalNorm(Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with mean and variance over all ranks."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        pixels = x_BCHW.numel() // x_BCHW.shape[1]
        if pixels * world_size() < 2:  # known without the others' counts, on which a compiled network could not branch
            raise ValueError("batch norm needs more than one value per channel over all ranks")
        precise_BCHW = at_least_float32(x_BCHW)
        local_variance_C, local_mean_C = torch.var_mean(precise_BCHW, (0, 2, 3), correction=0)
        local_count_1 = local_mean_C.new_tensor([pixels])
        parts_R = all_gather(torch.cat([local_mean_C, local_variance_C, local_count_1]))
        means_RC, variances_RC = parts_R[:, :-1].chunk(2, dim=1)
        counts_R1 = parts_R[:, -1:]
        count = counts_R1.sum()
        # The ranks' moments combined about the global mean: nothing is lost as in E[x^2] - E[x]^2.
        mean_C = (counts_R1 * means_RC).sum(0) / count
        variance_C = (counts_R1 * (variances_RC + (means_RC - mean_C).square())).sum(0) / count
        y_BCHW = F.batch_norm(x_BCHW, mean_C, variance_C, weight_C, bias_C, False, 0.0, eps)
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, (variance_C + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean_C, variance_C, count)
        return y_BCHW, mean_C, variance_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        x_BCHW, weight_C, mean_C, scale_C, count = ctx.saved_tensors
        gradient_BCHW = at_least_float32(gradients[0])
        normal_BCHW = (at_least_float32(x_BCHW) - _per_channel(mean_C)).mul_(_per_channel(scale_C))
        gradient_bias_C = gradient_BCHW.sum((0, 2, 3))
        gradient_weight_C = (gradient_BCHW * normal_BCHW).sum((0, 2, 3))
        mean_gradient_C, mean_product_C = (all_sum(torch.cat([gradient_bias_C, gradient_weight_C])) / count).chunk(2)
        centred_BCHW = gradient_BCHW - _per_channel(mean_gradient_C)
        centred_BCHW -= normal_BCHW.mul_(_per_channel(mean_product_C))
        centred_BCHW *= _per_channel(scale_C if weight_C is None else scale_C * weight_C)
        affine = (None, None) if weight_C is None else (gradient_weight_C.to(weight_C.dtype), gradient_bias_C.to(weight_C.dtype))
        return centred_BCHW.to(x_BCHW.dtype), *affine, None


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C[None, :, None, None]


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """`module` with every batch norm over all ranks; same parameters, same state_dict. Before DistributedDataParallel.

    CUDA: torch's SyncBatchNorm. CPU: ours. timm's fused norm and activation keeps its activation in both.
    """
    if any(parameter.is_cuda for parameter in module.parameters()):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    if isinstance(module, nn.BatchNorm2d):
        return GlobalBatchNorm2d(module)
    for name, child in module.named_children():
        module.add_module(name, synchronise_batch_norm(child))
    return module
