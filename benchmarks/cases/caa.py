"""CAA: gates on axial attention's output, against the released five-axis product in groups, and against no gates at all."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.measure import Case, Work
from models.heads.caa import AxialAttention, Gate, channelized_axial_attention

KEYS, CHANNELS, SIZE, GROUPS = 64, 512, (128, 128), 16


def prepare(device: torch.device) -> Mapping[str, Work]:
    """One image's queries and values, channels last as networks on a GPU have them; half of each is 0, as after a ReLU."""
    maps = [torch.randn(1, channels, *SIZE).relu().mul(channels**-0.25) for channels in (KEYS, KEYS, CHANNELS)]
    inputs = [x.to(device, memory_format=torch.channels_last).requires_grad_() for x in maps]
    gates = [Gate(CHANNELS, 5, 128).to(device) for _ in range(2)]
    cotangent_BCHW = torch.randn(1, CHANNELS, *SIZE).to(device, memory_format=torch.channels_last)

    def work(form: Callable[..., Tensor], gates: list[nn.Module] | list[None]) -> Work:
        wanted = [*inputs, *(parameter for gate in gates if gate is not None for parameter in gate.parameters())]
        return lambda: torch.autograd.grad(form(*inputs, *gates), wanted, cotangent_BCHW)

    return {
        "ours": work(channelized_axial_attention, [*gates]),
        "plain axial attention": work(channelized_axial_attention, [None, None]),
        f"product in {GROUPS} groups": work(literal, [*gates]),
    }


def prepare_block(device: torch.device) -> Mapping[str, Work]:
    """One image's features through the whole block: convolutions to queries and values, attention, gates."""
    features_BCHW = torch.randn(1, CHANNELS, *SIZE).to(device, memory_format=torch.channels_last).requires_grad_()
    cotangent_BCHW = torch.randn_like(features_BCHW)

    def work(gate_depth: int) -> Work:
        block = AxialAttention(CHANNELS, KEYS, gate_depth, 128).to(device).to(memory_format=torch.channels_last)
        return lambda: torch.autograd.grad(block(features_BCHW), [features_BCHW, *block.parameters()], cotangent_BCHW)

    return {"ours": work(5), "plain axial attention": work(0)}


def literal(query_column_BDHW: Tensor, query_row_BDHW: Tensor, value_BCHW: Tensor, column_gate: nn.Module, row_gate: nn.Module) -> Tensor:
    """Attention maps times values, averaged, gated and summed: columns, then rows."""
    column_BDWH, value_BHWC = query_column_BDHW.transpose(2, 3), value_BCHW.permute(0, 2, 3, 1)
    column_HBHW = attention_maps(column_BDWH).permute(2, 0, 3, 1)
    y_HBWC = grouped(column_HBHW, value_BHWC, column_gate, summed=2)
    row_WBHW = attention_maps(query_row_BDHW).permute(2, 0, 1, 3)
    return grouped(row_WBHW, y_HBWC.transpose(0, 1), row_gate, summed=3).permute(1, 3, 2, 0)


def attention_maps(query_BDXL: Tensor) -> Tensor:
    """Softmax over the last axis for each place on it: BXLL."""
    query_BXLD = query_BDXL.permute(0, 2, 3, 1)
    return (query_BXLD @ query_BXLD.transpose(2, 3)).softmax(-1)


def grouped(maps_LBHW: Tensor, features_BHWC: Tensor, gate: nn.Module, summed: int) -> Tensor:
    """The released grouped vectorisation: a group of queries at a time; one more group of padding where the groups divide the axis."""
    length = len(maps_LBHW)
    size = length // GROUPS
    padding = maps_LBHW.new_zeros(size - length % size, *maps_LBHW.shape[1:])
    results = []
    for maps_GBHW in torch.cat([maps_LBHW, padding]).split(size):
        weighted_GBHWC = features_BHWC * maps_GBHW[..., None]
        gates_GBC = gate(weighted_GBHWC.mean((2, 3)))
        results.append((weighted_GBHWC * gates_GBC[:, :, None, None]).sum(summed))
    return torch.cat(results)[:length]


CASES = (Case("CAA, 128 x 128 x 512, forward and backward", "5 x faster, 20 x less memory than groups; 1.1 x of plain", prepare),)
