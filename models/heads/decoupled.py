"""Context features split into the body of objects and their edges, each supervised by itself, and joined again.

Li, Li, Zhang, Cheng, Shi, Lin, Tan, Tong: Improving Semantic Segmentation via Decoupled Body and Edge Supervision (ECCV 2020).
With F the context features (ASPP's, as in DeepLabV3), `down` two strided depthwise convolutions, up() bilinear resizing and S the stage
of stride 4,

    flow = conv3x3([F, up(down(F))])     body = F sampled at (x, y) + flow     edge = conv1x1([up(F - body), conv1x1(S)])
    features = conv3x3([up(F), edge + up(body)])     body logits from `body`, edge logits from `edge`

A flow of 1 is half a pixel of the map, almost. Where paper and released code differ we follow the code: two convolutions in `down`, not
three, and the concatenation with F. Its grid_sample is from before torch 1.3: corners are aligned, there as in every resizing.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels.precision import without_autocast
from models.parts.layers import (
    ASPP,
    End,
    PyramidPooling,
    at_least_float32,
    classifier,
    conv_norm_act,
    must_be_deterministic,
    resize,
    size_of,
)

LOW_LEVEL_STRIDE = 4
SMALLEST = 7  # the side of the smallest map that two unpadded 3x3 convolutions of stride 2 leave something of
BINS = (1, 2, 3, 6)  # of pyramid pooling, as in PSPNet


class Decoupled(nn.Module):
    """The last of two 3x3 convolutions on the joined features is the end. Extras, where a gradient or training may need them:
    `body` (logits of the classes at the context's stride) and `edge` (B1hw, at stride 4).

    context: `aspp` (rates, pooling), `fcn` (one 3x3 convolution) or `psp` (pyramid pooling), of the same width.
    """  # fmt: skip

    extras: tuple[str, ...] = ("body", "edge")

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 256,
        context: Literal["aspp", "fcn", "psp"] = "aspp",
        rates: tuple[int, ...] = (12, 24, 36),
        pooling: bool = True,
        low_level: int = 48,
        edge_width: int = 48,
    ) -> None:
        super().__init__()
        if min(width, low_level, edge_width, *rates) < 1:
            raise ValueError("head decoupled: width, low_level, edge_width and rates must be at least 1")
        if LOW_LEVEL_STRIDE not in strides:
            raise ValueError(f"head decoupled: its edges need a stage of stride {LOW_LEVEL_STRIDE}, the backbone has {list(strides)}")
        self.stage = len(strides) - 1 - list(reversed(strides)).index(LOW_LEVEL_STRIDE)
        self.context = _context(context, channels[-1], width, tuple(rates), pooling)
        self.body_edge = BodyEdge(width)
        self.low_level = nn.Conv2d(channels[self.stage], low_level, 1, bias=False)
        self.edge = nn.Conv2d(width + low_level, width, 1, bias=False)
        self.body_classifier = nn.Sequential(conv_norm_act(width, width, 3), classifier(width, classes))
        self.edge_classifier = nn.Sequential(conv_norm_act(width, edge_width, 3), nn.Conv2d(edge_width, 1, 1, bias=False))
        self.join = conv_norm_act(2 * width, width, 3)
        self.end = End(width, width)
        self.channels = width
        self.stride = LOW_LEVEL_STRIDE
        self.align_corners = True
        # Pooling to one value per channel and image, which a batch of one image cannot normalise.
        self.smallest_batch = 2 if context == "psp" or (context == "aspp" and pooling) else 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at stride 4, body and edge logits)."""
        context_BChw = self.context(stages[-1])
        body_BChw, rest_BChw = self.body_edge(context_BChw)
        low_BCHW = self.low_level(stages[self.stage])
        size = size_of(low_BCHW)
        edge_BCHW = self.edge(torch.cat([resize(rest_BChw, size, align_corners=True), low_BCHW], dim=1))
        joined_BCHW = edge_BCHW + resize(body_BChw, size, align_corners=True)
        features_BCHW = self.join(torch.cat([resize(context_BChw, size, align_corners=True), joined_BCHW], dim=1))
        # A frozen head is in eval mode and its losses are formed all the same; prediction has no gradient and no use for them.
        if not (self.training or torch.is_grad_enabled()):
            return features_BCHW, {}
        return features_BCHW, {"body": self.body_classifier(body_BChw), "edge": self.edge_classifier(edge_BCHW)}


def _context(name: str, channels: int, width: int, rates: tuple[int, ...], pooling: bool) -> nn.Module:
    """From the last stage to F, of `width` channels; ASPP's without norm and activation at its end, as released."""
    if name == "aspp":
        aspp = ASPP(channels, width, rates, separable=False, pooling=pooling)
        return nn.Sequential(aspp, nn.Conv2d(aspp.channels, width, 1, bias=False))
    if name == "psp":
        pyramid = PyramidPooling(channels, width, BINS)
        return nn.Sequential(pyramid, conv_norm_act(pyramid.channels, width, 3))
    if name == "fcn":
        return conv_norm_act(channels, width, 3)
    raise ValueError(f"head decoupled: context must be aspp, fcn or psp, not {name!r}")


class BodyEdge(nn.Module):
    """Features to their body, which is warped by a flow that they give themselves, and the rest, the edge: body + edge = features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, groups=channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride=2, groups=channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.flow = nn.Conv2d(2 * channels, 2, 3, padding=1, bias=False)

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(body_BCHW, edge_BCHW), of any size; warped in float32 at least."""
        coarse_BChw = self.down(at_least_7x7(features_BCHW))
        coarse_BCHW = resize(coarse_BChw, size_of(features_BCHW), align_corners=True)
        flow_B2HW = self.flow(torch.cat([features_BCHW, coarse_BCHW.to(features_BCHW.dtype)], dim=1))
        with without_autocast(features_BCHW.device):
            precise_BCHW = at_least_float32(features_BCHW)
            body_BCHW = warp(precise_BCHW, flow_B2HW.to(precise_BCHW.dtype))
            edge_BCHW = precise_BCHW - body_BCHW
        return body_BCHW.to(features_BCHW.dtype), edge_BCHW.to(features_BCHW.dtype)


def at_least_7x7(x_BCHW: Tensor) -> Tensor:
    """A smaller map with its outermost rows and columns repeated on both sides."""
    for axis in (-2, -1):
        length = x_BCHW.shape[axis]
        if length < SMALLEST:
            index = torch.arange(SMALLEST, device=x_BCHW.device) - (SMALLEST - length) // 2
            x_BCHW = x_BCHW.index_select(axis, index.clamp(0, length - 1))
    return x_BCHW


def warp(x_BCHW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """x, 0 outside, at each pixel's place plus flow / (W, H), the map reaching from -1 to 1 from corner to corner: bilinear, BCHW."""
    height, width = size_of(x_BCHW)
    x_W, y_H = (torch.linspace(-1, 1, length, device=x_BCHW.device, dtype=x_BCHW.dtype) for length in (width, height))
    grid_BHW2 = torch.stack([x_W + flow_B2HW[:, 0] / width, y_H[:, None] + flow_B2HW[:, 1] / height], dim=-1)
    if must_be_deterministic(x_BCHW):
        return sample_by_rows(x_BCHW, grid_BHW2)
    return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=True)


def sample_by_rows(x_BCHW: Tensor, grid_BHW2: Tensor) -> Tensor:
    """grid_sample as in `warp`, pixels taken as rows of a list: its gradient has a deterministic form on CUDA, grid_sample's has not."""
    batch, _, height, width = x_BCHW.shape
    rows_NC = x_BCHW.movedim(1, -1).flatten(0, 2)
    image_B11 = torch.arange(batch, device=x_BCHW.device)[:, None, None]
    x_BHW, y_BHW = ((grid_BHW2[..., i] + 1) / 2 * (length - 1) for i, length in enumerate((width, height)))
    left_BHW, top_BHW = x_BHW.detach().floor(), y_BHW.detach().floor()
    total_BHWC = rows_NC.new_zeros(*grid_BHW2.shape[:3], rows_NC.shape[1])
    for right, share_x_BHW in enumerate((1 - (x_BHW - left_BHW), x_BHW - left_BHW)):
        for down, share_y_BHW in enumerate((1 - (y_BHW - top_BHW), y_BHW - top_BHW)):
            column_BHW, row_BHW = left_BHW + right, top_BHW + down
            inside_BHW = (column_BHW >= 0) & (column_BHW < width) & (row_BHW >= 0) & (row_BHW < height)
            place_BHW = (image_B11 * height + row_BHW.clamp(0, height - 1).long()) * width + column_BHW.clamp(0, width - 1).long()
            taken_BHWC = rows_NC.index_select(0, place_BHW.flatten()).view_as(total_BHWC)
            total_BHWC = total_BHWC + (share_x_BHW * share_y_BHW * inside_BHW)[..., None] * taken_BHWC
    return total_BHWC.movedim(-1, 1)
