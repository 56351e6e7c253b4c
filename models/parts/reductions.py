"""Sums over all processes, with gradient; without a process group each is the identity.

A loss that divides a local sum by a global count returns `share_of_mean`, whose mean over the ranks (what DistributedDataParallel
forms of the gradients) is the mean over the global batch. A loss that is not linear in its sums takes them from `all_sum`: then
every rank holds the same value, and the gradient's mean over the ranks is again the global one.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def world_size() -> int:
    """The number of processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllSum(Function):
    """Sum over ranks; the gradient of a sum that every rank uses is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllSum.apply(gradients[0])


def all_sum(tensor: Tensor) -> Tensor:
    """The elementwise sum of `tensor` over all ranks, of the same shape, differentiable. Every rank must call it."""
    return _AllSum.apply(tensor) if world_size() > 1 else tensor


def all_gather(tensor: Tensor) -> Tensor:
    """`tensor` of each rank in the order of ranks: (world, *shape), without gradient. Every rank must call it."""
    if world_size() == 1:
        return tensor.detach()[None]
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.stack(parts)


def share_of_mean(total: Tensor, count: Tensor) -> Tensor:
    """The rank's share of a mean over the global batch: total * world / (sum of counts), 0 where nothing is counted.

    total: this rank's sum, with gradient; count: how many values it sums, an integer tensor.
    """
    return total * (world_size() / all_sum(count.detach()).clamp(min=1).to(total.dtype))
