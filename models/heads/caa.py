"""Channelised axial attention: attention along columns, then along rows, each weighed by a gate over its channels.

Huang et al.: Channelized Axial Attention - Considering Channel Relation within Spatial Attention for Semantic Segmentation (AAAI 2022).
With attention maps A over one column or one row, and the gates being MLPs with a sigmoid at the end,

    alpha[i,m,w] = A_column[w;i,m] V[m,w]        Y[i,w] = sum over m of alpha[i,m,w] G_column(mean over m and w of alpha[i])

and likewise along rows, from Y. The released code forms alpha, of shape [H, H, W, C], in groups. But the gate depends on neither m nor w,
so it leaves the sum: with Y' the attention's plain output, Y[i,w] = Y'[i,w] G_column(mean over w of Y'[i,w] / H), which is exact and needs
the memory of Y alone. It does not depend on the index that attention along rows sums over either, so both gates multiply the
end result, once. The 1/HW makes the gates' inputs tiny: they are float32 under autocast, and the gates start at about 1/2.

`attention: full` is the thesis' channelised self-attention, for which there is no code; the same derivation gives
Y_p = Y'_p G(Y'_p / HW). `gates: false` is the control without gates. `decoder: true` is the variant of the paper's best row, which merges
the low-level features as DeepLabV3+ does. The released head crashes unless repaired: its last
positional argument lands in the wrong parameter.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.kernels.precision import without_autocast
from models.parts.attention import along_columns, attend, attention_map, in_autocast
from models.parts.decoder import LOW_LEVEL_STRIDE, Decoder
from models.parts.gating import modulate, with_sum
from models.parts.layers import End, ImagePooling, at_least_float32, conv_norm_act, size_of

SLOPE = 0.2  # of the gates' leaky ReLU


class CAA(nn.Module):
    """Attention on the last stage beside the image's mean; the end is their 1x1 fusion, or the second convolution of the decoder."""

    extras = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 512,
        key_width: int = 64,
        output_width: int = 256,
        attention: Literal["axial", "full"] = "axial",
        gates: bool = True,
        gate_depth: int = 5,
        gate_width: int = 128,
        pooling: bool = True,
        decoder: bool = False,
        low_level: int = 48,
    ) -> None:
        super().__init__()
        if min(width, key_width, output_width, gate_depth, gate_width, low_level) < 1:
            raise ValueError("head caa: width, key_width, output_width, gate_depth, gate_width and low_level must be at least 1")
        if attention not in ("axial", "full"):
            raise ValueError(f"head caa: attention must be axial or full, not {attention!r}")
        self.entry = conv_norm_act(channels[-1], width, 3)
        form = AxialAttention if attention == "axial" else FullAttention
        self.attention = form(width, key_width, gate_depth if gates else 0, gate_width)
        self.exit = conv_norm_act(width, width, 1)
        self.pool = ImagePooling(channels[-1], width) if pooling else None
        merge = End(width * (1 + pooling), output_width, 1)
        self.decoder = Decoder("caa", channels, strides, merge, low_level, separable=False) if decoder else None
        self.end = End(output_width, output_width) if decoder else merge
        self.channels = self.end.inputs
        self.stride = LOW_LEVEL_STRIDE if decoder else strides[-1]
        self.align_corners = not decoder  # the decoder's own upsampling does not align corners
        # The pooled branch has one value per channel and image, which a batch of one image cannot normalise.
        self.smallest_batch = 2 if pooling else 1

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(features_BCHW at `stride`, without decoder attention's channels first; nothing more)."""
        x_BCHW = self.exit(self.attention(self.entry(stages[-1])))
        if self.pool is not None:
            x_BCHW = torch.cat([x_BCHW, self.pool(stages[-1])], dim=1)
        return (x_BCHW if self.decoder is None else self.decoder(x_BCHW, stages)), {}


class Gate(nn.Sequential):
    """`depth` hidden layers without bias, leaky ReLU between them, a sigmoid at the end: (..., C) to (..., C) in (0, 1)."""

    def __init__(self, channels: int, depth: int, width: int) -> None:
        layers: list[nn.Module] = []
        for inputs in [channels] + [width] * (depth - 1):
            layers += [nn.Linear(inputs, width, bias=False), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, nn.Linear(width, channels, bias=False), nn.Sigmoid())
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, input: Tensor) -> Tensor:
        """In the weights' own precision, also under autocast."""
        with without_autocast(input.device):
            return super().forward(input.to(next(self.parameters()).dtype))


def _gate(channels: int, depth: int, width: int) -> Gate | None:
    return Gate(channels, depth, width) if depth else None


class AxialAttention(nn.Module):
    """Columns, then rows, from one map. `query_*` and `value` are what the attention is made of, `*_gate` give the gates BHC and BWC."""

    def __init__(self, width: int, key_width: int, gate_depth: int, gate_width: int) -> None:
        super().__init__()
        self.query_column, self.query_row = (conv_norm_act(width, key_width, 1) for _ in range(2))
        self.value = conv_norm_act(width, width, 1)
        self.column_gate, self.row_gate = (_gate(width, gate_depth, gate_width) for _ in range(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW of the values."""
        queries = self.query_column(x_BCHW), self.query_row(x_BCHW)
        return channelized_axial_attention(*queries, self.value(x_BCHW), self.column_gate, self.row_gate)


class FullAttention(nn.Module):
    """All pixels attend to all, query = key; `gate` gives the gates BNC, N = HW."""

    def __init__(self, width: int, key_width: int, gate_depth: int, gate_width: int) -> None:
        super().__init__()
        self.query, self.value = conv_norm_act(width, key_width, 1), conv_norm_act(width, width, 1)
        self.gate = _gate(width, gate_depth, gate_width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW of the values."""
        query_BND, value_BNC = (conv(x_BCHW).flatten(2).transpose(1, 2) for conv in (self.query, self.value))
        y_BNC = attend(query_BND, query_BND, value_BNC)
        if self.gate is not None:
            y_BNC = y_BNC * self.gate(at_least_float32(y_BNC) / y_BNC.shape[1]).to(y_BNC.dtype)
        return y_BNC.transpose(1, 2).unflatten(2, size_of(x_BCHW))


def channelized_axial_attention(
    query_column_BDHW: Tensor,
    query_row_BDHW: Tensor,
    value_BCHW: Tensor,
    column_gate: Callable[[Tensor], Tensor] | None,
    row_gate: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """The module's text: BCHW of the values' type, stored channels last. Key = query, no scaling, columns first.

    A gate maps (..., C) to (..., C) in (0, 1), None is no gate. It sees the values' type, or float32 at least under autocast.
    """
    kind = torch.promote_types(value_BCHW.dtype, torch.float32) if in_autocast(value_BCHW) else value_BCHW.dtype
    share = 1 / max(1, value_BCHW.shape[2] * value_BCHW.shape[3])

    def gated(gate: Callable[[Tensor], Tensor], sums_BLC: Tensor) -> Tensor:
        return at_least_float32(gate((sums_BLC * share).to(kind)))

    with without_autocast(value_BCHW.device):
        value_BHWC = value_BCHW.permute(0, 2, 3, 1).contiguous()
        columns_BWHD, rows_BHWD = query_column_BDHW.permute(0, 3, 2, 1).contiguous(), query_row_BDHW.permute(0, 2, 3, 1).contiguous()
        y_BHWC = along_columns(attention_map(columns_BWHD, columns_BWHD).to(value_BCHW.dtype), value_BHWC)
        column_BHC = None
        if column_gate is not None:
            y_BHWC, sums_BHC = with_sum(y_BHWC, 2)
            column_BHC = gated(column_gate, sums_BHC)
        y_BHWC = attention_map(rows_BHWD, rows_BHWD).to(value_BCHW.dtype) @ y_BHWC
        row_BWC = None
        if row_gate is not None:
            y_BHWC, sums_BWC = with_sum(y_BHWC, 1, column_BHC)
            row_BWC = gated(row_gate, sums_BWC)
        return modulate(y_BHWC, column_BHC, row_BWC).permute(0, 3, 1, 2)
