"""Channelised axial attention against the released code's arrays and against its literal five-axis form in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.flops import declared
from models.heads.caa import CAA, Gate, channelized_axial_attention
from models.parts import gating

REFERENCE = Path(__file__).parents[1] / "reference" / "caa_a.npz"
MLP = Callable[[Tensor], Tensor]


def literal(query_column: Tensor, query_row: Tensor, value: Tensor, column_gate: MLP | None, row_gate: MLP | None) -> Tensor:
    """Equations 3.6 to 3.11: weighted features of five axes, averaged, gated, summed."""
    column_map = torch.einsum("bdiw,bdmw->biwm", query_column, query_column).softmax(-1)
    weighted_BIMWC = torch.einsum("biwm,bcmw->bimwc", column_map, value)
    if column_gate is not None:
        weighted_BIMWC = weighted_BIMWC * column_gate(weighted_BIMWC.mean((2, 3)))[:, :, None, None]
    y_BHWC = weighted_BIMWC.sum(2)
    row_map = torch.einsum("bdhj,bdhn->bhjn", query_row, query_row).softmax(-1)
    weighted_BJHNC = torch.einsum("bhjn,bhnc->bjhnc", row_map, y_BHWC)
    if row_gate is not None:
        weighted_BJHNC = weighted_BJHNC * row_gate(weighted_BJHNC.mean((2, 3)))[:, :, None, None]
    return weighted_BJHNC.sum(3).permute(0, 3, 2, 1)


def mlp(channels: int, width: int = 4, sharpness: float = 30.0) -> nn.Sequential:
    """A gate that reacts: an average over pixels is small."""
    gate = nn.Sequential(nn.Linear(channels, width), nn.LeakyReLU(0.2), nn.Linear(width, channels), nn.Sigmoid()).double()
    with torch.no_grad():
        gate[0].weight.mul_(sharpness)
    return gate


def inputs(batch: int, height: int, width: int, channels: int = 5, keys: int = 3) -> list[Tensor]:
    torch.manual_seed(height * 100 + width)
    shapes = ((batch, keys, height, width), (batch, keys, height, width), (batch, channels, height, width))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same(ours: MLP, expected: MLP, given: list[Tensor], gates: list[nn.Module | None], tolerance: float = 1e-11) -> None:
    """Equal values, and equal gradients to the inputs and to the gates' weights."""
    wanted = [*given, *(parameter for gate in gates if gate is not None for parameter in gate.parameters())]
    values = [form(*given, *gates) for form in (ours, expected)]
    torch.testing.assert_close(*values, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn_like(values[0])
    for a, b in zip(*(torch.autograd.grad((value * cotangent).sum(), wanted) for value in values), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_the_released_codes(dtype: torch.dtype) -> None:
    with np.load(REFERENCE) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}

    def gate(name: str) -> MLP:
        weights = [arrays[f"{name}_mlp_{layer}"].to(dtype) for layer in range(6)]

        def run(x: Tensor) -> Tensor:
            for weight in weights[:-1]:
                x = F.leaky_relu(x @ weight.T, float(arrays["negative_slope"]))
            return torch.sigmoid(x @ weights[-1].T)

        return run

    given = [arrays[name].to(dtype).requires_grad_() for name in ("query_column", "query_row", "value")]
    for name, gates in (("channelized", [gate("column"), gate("row")]), ("axial", [None, None])):
        ours, expected = channelized_axial_attention(*given, *gates), literal(*given, *gates)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, arrays[name].to(dtype), rtol=1e-5, atol=1e-6)
        for a, b in zip(*(torch.autograd.grad(form.square().sum(), given) for form in (ours, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert b.abs().max() > 1e-3


@pytest.mark.parametrize("gated", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 1), (4, 4), (3, 11), (15, 7), (17, 16)])
def test_the_gates_leave_the_sum(size: tuple[int, int], gated: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "CACHED", 150)  # so that there are several strips
    gates = [mlp(5) if wanted else None for wanted in gated]
    assert_same(channelized_axial_attention, literal, inputs(2, *size), gates)


@pytest.mark.parametrize("gated", [(True, True), (True, False), (False, True), (False, False)])
def test_the_form_for_compilers_is_the_same(gated: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_same(channelized_axial_attention, literal, inputs(2, 7, 6), [mlp(5) if wanted else None for wanted in gated])


def test_it_compiles_as_one_graph() -> None:
    gates, given = [Gate(6, 2, 4), Gate(6, 2, 4)], [x.detach().float() for x in inputs(2, 5, 4, channels=6)]
    compiled = torch.compile(channelized_axial_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given, *gates), channelized_axial_attention(*given, *gates))


def test_any_layout_and_any_gate_will_do() -> None:
    given, gates = inputs(2, 6, 5), [mlp(5), mlp(5)]
    expected = literal(*given, *gates)
    for layout in (torch.channels_last, torch.contiguous_format):
        ours = channelized_axial_attention(*(x.contiguous(memory_format=layout) for x in given), *gates)
        torch.testing.assert_close(ours, expected)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    turned = [x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in given]
    assert_same(channelized_axial_attention, literal, turned, gates)
    for constant in (torch.zeros_like, torch.ones_like):  # closed for good, and one without gradient
        assert_same(channelized_axial_attention, literal, given, [Fixed(constant), gates[1]])
        assert_same(channelized_axial_attention, literal, given, [gates[0], Fixed(constant)])


class Fixed(nn.Module):
    """A gate that does not look."""

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_softmax_and_gates_are_float32_under_autocast(kind: torch.dtype) -> None:
    column, row, value = (x.detach() for x in inputs(2, 12, 10))
    column, row, value = (10 * column).to(kind), (10 * row).to(kind), value.to(kind)  # products of several hundred
    gates = [Gate(5, 5, 8), Gate(5, 5, 8)]
    seen = []
    for gate in gates:
        gate.register_forward_hook(lambda _, given, result: seen.extend([given[0].dtype, result.dtype]))
    with torch.autocast("cpu", kind):
        low = channelized_axial_attention(column, row, value, *gates)
    assert low.dtype == kind
    assert seen == [torch.float32] * 4
    exact = literal(column.double(), row.double(), value.double(), *(gate.double() for gate in gates))
    digits = torch.finfo(kind).eps
    assert (low.double() - exact).abs().max() < 6 * digits * exact.abs().max()
    plain = channelized_axial_attention(column, row, value, *(gate.to(kind) for gate in gates))  # half precision throughout
    assert plain.dtype == kind
    assert (plain.double() - exact).abs().max() < 12 * digits * exact.abs().max()


def test_gradients_in_half_precision_are_those_of_float64() -> None:
    given, gates = [x.detach().to(torch.bfloat16).requires_grad_() for x in inputs(2, 9, 8)], [mlp(5).float(), mlp(5).float()]
    with torch.autocast("cpu", torch.bfloat16):
        low = channelized_axial_attention(*given, *gates)
    cotangent = torch.randn(low.shape)
    weights = [parameter for gate in gates for parameter in gate.parameters()]
    ours = torch.autograd.grad((low.float() * cotangent).sum(), [*given, *weights])
    exact = [x.detach().double().requires_grad_() for x in given]
    gates = [gate.double() for gate in gates]
    weights = [parameter for gate in gates for parameter in gate.parameters()]
    expected = torch.autograd.grad((literal(*exact, *gates) * cotangent).sum(), [*exact, *weights])
    for a, b in zip(ours, expected, strict=True):
        assert (a.double() - b).norm() < 0.03 * b.norm()


def test_no_images_and_no_device_are_no_trouble() -> None:
    gates = [Gate(5, 1, 4), Gate(5, 1, 4)]
    given = [torch.zeros(0, channels, 4, 3, requires_grad=True) for channels in (2, 2, 5)]
    result = channelized_axial_attention(*given, *gates)
    assert result.shape == (0, 5, 4, 3)
    result.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for gate in gates for parameter in gate.parameters())
    with torch.device("meta"):
        head = CAA([6], [8], 3, width=4, key_width=2)
        assert head([torch.zeros(2, 6, 5, 4)])[0].shape == (2, 8, 5, 4)


def kept_for_the_gradient(work: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def test_memory_is_that_of_the_features() -> None:
    height, width, channels = 48, 44, 96
    given = [x.detach().float().requires_grad_() for x in inputs(1, height, width, channels)]
    features = height * width * channels * 4
    gates = [Gate(channels, 5, 24), Gate(channels, 5, 24)]
    gated = kept_for_the_gradient(lambda: channelized_axial_attention(*given, *gates))
    plain = kept_for_the_gradient(lambda: channelized_axial_attention(*given, None, None))
    assert gated - plain < 1.5 * features  # the output before gating; the gates themselves are small
    assert gated < 5 * features


def build(**options: Any) -> CAA:
    return CAA([4, 6], [4, 8], 3, **{"width": 8, "key_width": 3, "output_width": 5, "gate_width": 4, "gate_depth": 2, **options})


def test_the_head_has_the_published_shape() -> None:
    with torch.device("meta"):
        head = CAA([256, 512, 1024, 2048], [4, 8, 8, 8], 59)
    assert (head.channels, head.stride, head.align_corners, head.end, head.smallest_batch) == (1024, 8, True, (1024, 256, 1, False), 2)
    gate = 512 * 128 + 4 * 128 * 128 + 128 * 512
    convs = 2048 * 512 * 9 + 2 * 512 * 64 + 512 * 512 + 512 * 512 + 2048 * 512
    norms = 2 * (512 + 64 + 64 + 512 + 512 + 512)
    assert sum(parameter.numel() for parameter in head.parameters()) == convs + norms + 2 * gate
    assert not any(name.endswith("bias") for name, _ in head.attention.column_gate.named_parameters())
    with torch.device("meta"):
        bare = CAA([2048], [8], 59, gates=False, pooling=False)
    assert (bare.channels, bare.end.inputs, bare.smallest_batch) == (512, 512, 1)
    assert bare.attention.column_gate is None


def test_the_head_is_entry_attention_exit_and_pooling() -> None:
    torch.manual_seed(0)
    head = build().double().eval()
    stages = [torch.randn(2, 4, 9, 7, dtype=torch.float64), torch.randn(2, 6, 5, 4, dtype=torch.float64)]
    features, extras = head(stages)
    assert extras == {}
    inner, block = head.entry(stages[-1]), head.attention
    attended = literal(block.query_column(inner), block.query_row(inner), block.value(inner), block.column_gate, block.row_gate)
    torch.testing.assert_close(features[:, :8], head.exit(attended))
    pooled = head.pool[1](stages[-1].mean((2, 3), keepdim=True))
    torch.testing.assert_close(features[:, 8:], pooled.expand(-1, -1, 5, 4))
    assert build(gates=False).double().eval()(stages)[0].shape == features.shape


def test_the_decoder_takes_the_fusion_up_to_stride_4() -> None:
    torch.manual_seed(3)
    head, plain = build(decoder=True, low_level=3).double().eval(), build().double().eval()
    plain.load_state_dict({name: value for name, value in head.state_dict().items() if not name.startswith("decoder.")})
    stages = [torch.randn(2, 4, 9, 7, dtype=torch.float64), torch.randn(2, 6, 5, 4, dtype=torch.float64)]
    decoder = head.decoder
    up = nn.functional.interpolate(decoder.bottleneck(plain(stages)[0]), size=(9, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(stages)[0], decoder.refine(torch.cat([up, decoder.low_level(stages[0])], 1)))
    assert (head.stride, head.align_corners, plain.align_corners) == (4, False, True)
    assert tuple(head.end) == (head.channels, head.channels, 3, False)
    with pytest.raises(ValueError, match="head caa: its decoder needs a stage of stride 4"):
        CAA([4, 6], [8, 16], 5, decoder=True)


def test_full_attention_is_gated_pixel_by_pixel() -> None:
    torch.manual_seed(1)
    for gates in (True, False):
        block = build(attention="full", gates=gates).double().eval().attention
        x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
        query, value = (conv(x).flatten(2) for conv in (block.query, block.value))
        weighted_BPQC = torch.einsum("bpq,bcq->bpqc", torch.einsum("bdp,bdq->bpq", query, query).softmax(-1), value)
        if gates:
            weighted_BPQC = weighted_BPQC * block.gate(weighted_BPQC.mean(2))[:, :, None]
        torch.testing.assert_close(block(x), weighted_BPQC.sum(2).transpose(1, 2).unflatten(2, (3, 5)))


def test_figures_find_gates_and_attended_maps_by_hooks() -> None:
    head, seen = build(), {}
    for name in ("attention", "attention.column_gate", "attention.row_gate", "attention.value"):
        head.get_submodule(name).register_forward_hook(lambda _, __, result, name=name: seen.update({name: result}))
    head([torch.randn(2, 4, 9, 7), torch.randn(2, 6, 5, 4)])
    assert {name: tuple(found.shape) for name, found in seen.items()} == {
        "attention": (2, 8, 5, 4), "attention.column_gate": (2, 5, 8), "attention.row_gate": (2, 4, 8), "attention.value": (2, 8, 5, 4),
    }  # fmt: skip
    assert all(0 < found.min() <= found.max() < 1 for name, found in seen.items() if name.endswith("gate"))


def test_gates_start_at_a_half() -> None:
    torch.manual_seed(2)
    gate = Gate(512, 5, 128)
    assert [tuple(layer.weight.shape) for layer in gate if isinstance(layer, nn.Linear)] == [(128, 512), *[(128, 128)] * 4, (512, 128)]
    limit = (6 / (512 + 128)) ** 0.5  # Glorot's
    assert 0.95 * limit < gate[0].weight.abs().max() <= limit
    assert (gate(torch.rand(3, 512) / 1000) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("form", ["axial", "full"])
def test_multiply_adds_are_counted(form: str) -> None:
    head, stage = build(attention=form).eval(), torch.randn(1, 6, 5, 4)
    with torch.no_grad(), declared() as further, FlopCounterMode(display=False) as counter:
        head([stage, stage])
    pixels, reach = 20, 5 + 4 if form == "axial" else 20
    convs = pixels * (6 * 8 * 9 + 8 * 8 * 2 + 8 * 3 * (2 if form == "axial" else 1)) + 6 * 8
    gates = (reach if form == "axial" else pixels) * (8 * 4 + 4 * 4 + 4 * 8)
    gated_sum = pixels * 8 if form == "axial" else 0
    assert counter.get_total_flops() + sum(further) == 2 * (convs + gates + gated_sum + pixels * reach * (3 + 8))


def test_wrong_options_are_refused() -> None:
    for wrong in ({"attention": "both"}, {"gate_depth": 0}, {"width": 0}, {"key_width": 0}, {"output_width": -1}, {"gate_width": 0}):
        with pytest.raises(ValueError, match="head caa"):
            build(**wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gated", [True, False])
def test_a_gpu_gives_the_same(layout: torch.memory_format, gated: bool) -> None:
    given = [x.detach().cuda().contiguous(memory_format=layout).requires_grad_() for x in inputs(3, 19, 14)]
    assert_same(channelized_axial_attention, literal, given, [mlp(5).cuda() if gated else None for _ in range(2)])


@pytest.mark.gpu
def test_a_gpu_trains_the_head_compiled_deterministic_and_in_half_precision() -> None:
    torch.manual_seed(0)
    head = build().cuda().to(memory_format=torch.channels_last)
    stage = torch.randn(2, 6, 17, 13, device="cuda").contiguous(memory_format=torch.channels_last)
    expected = head([stage])[0]
    torch.testing.assert_close(torch.compile(head)([stage])[0], expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        low = head([stage])[0]
    assert (low.float() - expected).norm() < 0.05 * expected.norm()
    low.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())
