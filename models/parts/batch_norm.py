"""Batch norm over the pixels of all ranks, so that N processes compute what one does, on any backend."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.parts.layers import at_least_float32
from models.parts.reductions import all_gather, all_sum, world_size


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
