"""E-CRF's messages against the released algorithm: copies of all neighbours, and a loop over superpixels with masks."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, Work
from models.crf.embedded import MessagePassing
from models.segmenter import build, build_loss

BATCH, CHANNELS, SIZE, SEGMENTS = 2, 256, 128, 14  # 14 x 14 superpixels
STEP_BATCH, CROP, CLASSES = 4, 512, 150


def messages(device: torch.device) -> Mapping[str, Work]:
    """Forward and backward of the messages alone."""
    module = MessagePassing(CHANNELS).to(device)
    features_BCHW = torch.randn(BATCH, CHANNELS, SIZE, SIZE, device=device, requires_grad=True)
    image_B3HW = torch.rand(BATCH, 3, 4 * SIZE, 4 * SIZE, device=device)
    labels_BHW = squares(BATCH, 4 * SIZE, device)
    cotangent_BCHW = torch.randn_like(features_BCHW)

    def step(output_BCHW: Tensor) -> object:
        return torch.autograd.grad(output_BCHW, [features_BCHW, *module.parameters()], cotangent_BCHW)

    return {
        "ours": lambda: step(module(features_BCHW, image_B3HW, labels_BHW)),
        "literal": lambda: step(literal(module, features_BCHW, image_B3HW, labels_BHW)),
    }


def squares(batch: int, size: int, device: torch.device) -> Tensor:
    """Superpixels in rows and columns, over the whole image."""
    index = torch.arange(size, device=device) * SEGMENTS // size
    return (index[:, None] * SEGMENTS + index).int().expand(batch, -1, -1).contiguous()


def literal(module: MessagePassing, features_BCHW: Tensor, image_B3HW: Tensor, labels_BHW: Tensor) -> Tensor:
    """F + 0.1 S + 0.2 M as released: everything unfolded to the nine taps, each superpixel in turn."""
    batch, _, height, width = features_BCHW.shape
    image_B3hw = F.interpolate(image_B3HW, (height, width), mode="bilinear", align_corners=False)
    places = encoding(height, width, features_BCHW).expand(batch, -1, -1, -1)
    tokens_BEHW = torch.cat([module.image_conv(image_B3hw), module.position_conv(places)], dim=1)
    near_BETN = F.unfold(tokens_BEHW, 3, dilation=2, padding=2).unflatten(1, (-1, 9))
    kernel_BTN = (tokens_BEHW.flatten(2)[:, :, None] * near_BETN).sum(1)
    near_BCTN = F.unfold(features_BCHW, 3, dilation=2, padding=2).unflatten(1, (-1, 9))
    compatibility_B1TN = torch.sigmoid(module.compatibility_conv(near_BCTN))
    pairwise_BCN = (compatibility_B1TN * kernel_BTN[:, None] * near_BCTN).sum(2)
    result_BCHW = features_BCHW + 0.2 * pairwise_BCN.view_as(features_BCHW)
    small_B1hw = F.interpolate(labels_BHW[:, None].float(), (height, width), mode="nearest")
    for label in range(int(labels_BHW.max()) + 1):
        mask_B1HW = (small_B1hw == label).float()
        count_B111 = mask_B1HW.sum((2, 3), keepdim=True)
        mean_BC11 = (features_BCHW * mask_B1HW).sum((2, 3), keepdim=True) / (count_B111 + 1e-5)
        result_BCHW = result_BCHW + 0.1 * mean_BC11 * mask_B1HW
    return result_BCHW


def encoding(height: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of x, then of y: 1, 64, H, W."""
    frequencies = 10000 ** (-torch.arange(0, 32, 2, device=like.device) / 32)
    rows, columns = torch.meshgrid(torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij")
    angles = [frequencies[:, None, None] * place for place in (columns, rows)]
    return torch.cat([torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1) for angle in angles])[None]


def deeplab_step(device: torch.device) -> Mapping[str, Work]:
    """A training step of the whole network with and without the messages."""
    image_B3HW = torch.rand(STEP_BATCH, 3, CROP, CROP, device=device)
    labels_BHW = torch.randint(CLASSES, (STEP_BATCH, CROP, CROP), device=device)
    superpixels_BHW = squares(STEP_BATCH, CROP, device)

    def step(crf: str) -> Work:
        config = SimpleNamespace(
            backbone=SimpleNamespace(name="resnet101", output_stride=8, pretrained=False),
            auxiliary=SimpleNamespace(stage=-2, width=256, kernel=3, weight=0.4),
            head=SimpleNamespace(name="deeplab", options={}),
            crf=SimpleNamespace(name=crf, options={}),
            loss=SimpleNamespace(name="cross_entropy", options={}),
            projection="end",
        )
        network, loss = build(config, CLASSES).to(device).train(), build_loss(config, CLASSES)

        def run() -> None:
            network.zero_grad()
            sum(loss(network(image_B3HW, superpixels_BHW), labels_BHW).values(), torch.zeros((), device=device)).backward()

        return run

    return {"ours": step("embedded"), "plain DeepLabV3+": step("unary")}


CASES = (
    Case("E-CRF messages, 2 x 256 x 128 x 128, 196 superpixels", "literal 16 times ours, twice its memory", messages),
    Case("DeepLabV3+ R101 step, 4 x 512 x 512, with E-CRF", "1.02 of plain", deeplab_step, devices=("cuda",)),
)
