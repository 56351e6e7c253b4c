"""CAR's terms against their released form, and against the training step that they are added to."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.measure import Case, Work
from models.losses.car import class_aware_terms
from models.segmenter import build, build_loss

CLASSES, WIDTH = 59, 512  # Pascal Context's classes; the features' channels


def prepare(device: torch.device) -> Mapping[str, Work]:
    """ResNet-50 at stride 8 with self-attention: crop 513, 8 images in bf16 on a GPU; crop 257, 1 image in fp32 on a CPU."""
    crop, batch = (513, 8) if device.type == "cuda" else (257, 1)
    config = SimpleNamespace(
        backbone=SimpleNamespace(name="resnet50", output_stride=8, pretrained=False),
        head=SimpleNamespace(name="attention", options={"width": WIDTH}),
        crf=SimpleNamespace(name="unary", options={}),
        loss=SimpleNamespace(name="car", options={}),
        projection="linear",
        auxiliary=None,
    )
    network = build(config, CLASSES).to(device).train()
    network.to(memory_format=torch.channels_last)
    loss = build_loss(config, CLASSES)
    images_B3HW = torch.rand(batch, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
    labels_BHW = regions(batch, crop, device)
    with torch.no_grad():
        features_BCHW = network(images_B3HW).features_BChw
    features_BCHW = features_BCHW.detach().requires_grad_()

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = loss(network(images_B3HW), labels_BHW)
        torch.stack(list(terms.values())).sum().backward()

    def alone(terms: Mapping[str, Tensor]) -> object:
        return torch.autograd.grad(torch.stack(list(terms.values())).sum(), features_BCHW)

    return {
        "ours": lambda: alone(class_aware_terms(features_BCHW, labels_BHW, CLASSES)),
        "literal": lambda: alone(literal(features_BCHW, labels_BHW)),
        "training step": step,
    }


def regions(batch: int, size: int, device: torch.device) -> Tensor:
    """Squares of random classes, some ignored; the corners of the features' pixels fall on them."""
    labels_Bhw = torch.randint(0, CLASSES + 1, (batch, 8, 8), device=device)
    index = torch.arange(size, device=device) * 8 // size
    labels_BHW = labels_Bhw[:, index][:, :, index]
    return labels_BHW.where(labels_BHW < CLASSES, 255).to(torch.uint8)


def literal(features_BCHW: Tensor, labels_BHW: Tensor) -> dict[str, Tensor]:
    """The released form: float one-hot matrices for every choice, each step of the equations a tensor of its own."""
    channels, (height, width) = features_BCHW.shape[1], features_BCHW.shape[2:]
    rows, columns = (
        torch.linspace(0, labels_BHW.shape[axis] - 1, size, device=labels_BHW.device).round().long()
        for axis, size in ((1, height), (2, width))
    )
    labels_N = labels_BHW[:, rows][:, :, columns].flatten().long()
    own_NK = (labels_N[:, None] == torch.arange(CLASSES, device=labels_N.device)).float()
    pixels_NC = features_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    centres_KC = own_NK.T @ pixels_NC / own_NK.sum(0)[:, None].clamp(min=1)
    fixed_KC = centres_KC.detach()
    known_N1 = (labels_N != 255).float()[:, None]
    intra_NC = known_N1 * (own_NK @ fixed_KC - pixels_NC).abs()

    own_KK = torch.eye(CLASSES, device=labels_N.device)
    similar_KK = torch.softmax(centres_KC @ fixed_KC.T / channels**0.5, dim=1) * (1 - own_KK)
    between_K = torch.relu(similar_KK - 0.5 / (CLASSES - 1)).sum(1).clamp(1e-7, 1 - 1e-7)

    products_NK = pixels_NC @ fixed_KC.T
    ideal_K = torch.diagonal(fixed_KC @ fixed_KC.T)
    replaced_NK = products_NK * (1 - own_NK) + ideal_K * own_NK
    shares_NK = torch.softmax(replaced_NK / channels**0.5, dim=1) * (1 - own_NK)
    beyond_N = torch.relu(shares_NK - 0.25 / (CLASSES - 1)).sum(1).clamp(1e-7, 1 - 1e-7)
    return {
        "intra_c2p": intra_NC.mean().square().clamp(min=1e-5),
        "inter_c2c": between_K.mean().square(),
        "inter_c2p": beyond_N.mean().square(),
    }


CASES = (Case("CAR's terms, ResNet-50 with attention, stride 8", "training step: 100 times ours", prepare),)
