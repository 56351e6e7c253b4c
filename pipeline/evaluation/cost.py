"""What a prediction costs: parameters, floating-point operations, memory."""

import resource
import sys
from collections import Counter
from collections.abc import Sequence
from math import prod

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from models.flops import declared
from pipeline.evaluation.dense_crf import refined
from pipeline.evaluation.inference import scaled_size
from pipeline.evaluation.windows import Network, starts
from pipeline.settings.schema import DenseCRF, Evaluation


def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """The operations of fused attention, from its inputs' shapes."""
    return sdpa_flop_count(query, key, value)


# Attention as a GPU does it is in torch's table, as a CPU does it not.
ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def parameters(network: Network) -> int:
    """How many numbers the network learns."""
    return sum(parameter.numel() for parameter in network.model.parameters())


def flops(network: Network, size: tuple[int, int], evaluation: Evaluation, *, superpixels: bool) -> int:
    """Twice the multiply-adds of predicting one image of (height, width) at a single scale.

    One forward pass is counted (matrix products, convolutions, attention and what `models.flops` is told of; no other element-wise
    work), times the windows.
    """
    height, width = scaled_size(size, evaluation.short_side, 1.0)
    windows = 1
    if evaluation.mode == "slide" and evaluation.window and evaluation.stride:
        axes = zip((height, width), evaluation.window, evaluation.stride, strict=True)
        windows = prod(len(starts(*axis)) for axis in axes)
        height, width = evaluation.window
    weights = next(network.model.parameters())
    image_B3HW = torch.zeros(1, 3, height, width, device=weights.device, dtype=weights.dtype)
    superpixels_BHW = torch.zeros(1, height, width, device=weights.device, dtype=torch.int32)
    with torch.no_grad(), declared() as further, FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        network.model(image_B3HW, superpixels_BHW if superpixels else None)
    return windows * (counter.get_total_flops() + sum(further))


def crf_flops(image: Image.Image, classes: int, settings: DenseCRF, device: torch.device) -> int:
    """Twice the multiply-adds of an evaluation's dense CRF on an image, counted alike: on the lattice they depend on its colours."""
    probabilities_KHW = torch.full((classes, image.height, image.width), 1 / classes, device=device)
    with torch.no_grad(), declared() as further, FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        refined(probabilities_KHW, image, settings)
    return counter.get_total_flops() + sum(further)


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak memory, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes held: by tensors on a GPU, by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def usual_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The most frequent (height, width); of equally frequent ones the largest."""
    counts = Counter(sizes)
    return max(counts, key=lambda size: (counts[size], size))
