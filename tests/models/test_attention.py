"""Self-attention against a literal softmax in float64, in one piece and in blocks; pyramid pooling against a loop over regions."""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.flops import declared
from models.heads.attention import Attention
from models.heads.deeplab import DeepLab
from models.heads.fcn import FCN
from models.heads.psp import PSP
from models.parts import attention
from models.parts.attention import along_columns, attend
from models.parts.layers import Projection

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU; deterministic mode asks for it


def literal(query_BND: Tensor, key_BMD: Tensor, value_BMC: Tensor) -> Tensor:
    rows = []
    for queries, keys, values in zip(query_BND, key_BMD, value_BMC, strict=True):
        for query in queries:
            weights = torch.exp(keys @ query - (keys @ query).max())
            rows.append((weights[:, None] * values).sum(0) / weights.sum())
    return torch.stack(rows).view(*query_BND.shape[:2], -1)


@pytest.mark.parametrize("largest", [1, 30, 2**26])
@pytest.mark.parametrize("length", [1, 7, 20])
def test_attention_is_the_literal_mean_in_any_blocks(length: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LARGEST_MAP", largest)
    torch.manual_seed(length)
    given = [torch.randn(2, n, width, dtype=torch.float64, requires_grad=True) for n, width in ((length, 3), (6, 3), (6, 5))]
    ours, expected = attend(*given), literal(*given)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((form * cotangent).sum(), given) for form in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_blocks_keep_no_map_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    query, value = torch.randn(1, 200, 4, requires_grad=True), torch.randn(1, 200, 8, requires_grad=True)
    for largest, kept_map in ((2**26, True), (4000, False)):
        monkeypatch.setattr(attention, "LARGEST_MAP", largest)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            y = attend(query, query, value)
        assert (200 * 200 in sizes) == kept_map
        assert max([0, *sizes]) <= 200 * (200 if kept_map else 8)
        y.sum().backward()


@pytest.mark.parametrize("largest", [30, 2**26])
def test_softmax_is_float32_under_autocast(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LARGEST_MAP", largest)
    torch.manual_seed(0)
    query, value = (20 * torch.randn(1, 15, 4)).bfloat16(), torch.randn(1, 15, 6).bfloat16()
    query.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = attend(query, query, value)
    assert low.dtype == torch.bfloat16
    exact = literal(query.double(), query.double(), value.double())
    assert (low.double() - exact).abs().max() < 2**-6 * exact.abs().max()
    low.float().sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


class Precisions(TorchDispatchMode):
    """The precision that is set for products of float32 at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            self.seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


def test_logits_are_float32_where_less_is_allowed() -> None:
    """On a GPU "high" allows TF32, on some CPUs "medium" bfloat16."""
    given = [torch.randn(1, 6, width, requires_grad=True) for width in (3, 3, 5)]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with Precisions() as forward:
            y = attend(*given)
        with Precisions() as backward:
            y.sum().backward()
    finally:
        torch.set_float32_matmul_precision(before)
    assert forward.seen == ["ieee", "bf16"]
    assert sorted(backward.seen) == ["bf16", "bf16", "ieee", "ieee"]


def test_columns_are_multiplied_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.einsum("bwim,bmwc->biwc", maps, value)
    assert torch.autograd.gradcheck(along_columns, (maps, value))
    torch.testing.assert_close(along_columns(maps, value), expected)
    sums = [torch.autograd.grad(y.sum(), (maps, value)) for y in (along_columns(maps, value), expected)]  # a gradient without strides
    torch.testing.assert_close(*sums)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(along_columns(maps, value), expected)


def test_the_attention_head_adds_what_it_gathers() -> None:
    torch.manual_seed(0)
    head = Attention([4, 6], [4, 8], 3, width=8, key_width=3).double().eval()
    stages = [torch.randn(2, 4, 9, 7, dtype=torch.float64), torch.randn(2, 6, 5, 4, dtype=torch.float64)]
    features, extras = head(stages)
    x = head.entry(stages[-1])
    query, key, value = (conv(x).flatten(2).mT for conv in (head.attention.query, head.attention.key, head.attention.value))
    torch.testing.assert_close(features, x + literal(query, key, value).mT.unflatten(2, (5, 4)))
    assert extras == {}
    assert torch.equal(query, key)  # the same values at first, but weights of their own
    features.square().sum().backward()
    assert head.attention.query.weight.grad is not None
    assert head.attention.key.weight.grad is not None
    assert head.attention.query.weight is not head.attention.key.weight
    low = head.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert low([stage.float() for stage in stages])[0].dtype == torch.bfloat16


def test_the_attention_head_has_the_published_shape() -> None:
    with torch.device("meta"):
        head = Attention([1024, 2048], [8, 8], 59)
        assert head([torch.zeros(1, 2048, 6, 5)] * 2)[0].shape == (1, 512, 6, 5)
    assert (head.channels, head.stride, head.align_corners, head.end, head.smallest_batch) == (512, 8, False, (512, 512, 3, False), 1)
    expected = 2048 * 512 * 9 + 2 * 512 + 2 * (512 * 64 + 64) + 512 * 512 + 512
    assert sum(parameter.numel() for parameter in head.parameters()) == expected
    for wrong in ({"width": 0}, {"key_width": 0}):
        with pytest.raises(ValueError, match="head attention"):
            Attention([8], [8], 3, **wrong)


def test_multiply_adds_are_counted() -> None:
    head, stage = Attention([6], [8], 3, width=8, key_width=3).eval(), torch.randn(1, 6, 5, 4)
    with torch.no_grad(), declared() as further, FlopCounterMode(display=False) as counter:
        head([stage])
    expected = 20 * (6 * 8 * 9 + 2 * 8 * 3 + 8 * 8) + 20 * 20 * (3 + 8)
    assert counter.get_total_flops() + sum(further) == 2 * expected


@pytest.mark.parametrize(
    ("head", "inputs", "width"),
    [
        (lambda: Attention([2048], [8], 59), 512, 512),
        (lambda: FCN([2048], [8], 59), 512, 512),
        (lambda: FCN([2048], [8], 59, convs=1), 2048, 512),
        (lambda: DeepLab([2048], [8], 59, width=256, separable=False, decoder=False), 1280, 256),
    ],
)
def test_the_linear_projection_has_cars_shape(head: Any, inputs: int, width: int) -> None:
    """z is a 1x1 convolution with bias, then 1x1, norm, activation, of the widths that CAR gives each head."""
    with torch.device("meta"):
        projection = Projection(head().end, "linear")
    assert projection.linear is not None
    assert (projection.linear.in_channels, projection.linear.out_channels, projection.linear.kernel_size) == (inputs, width, (1, 1))
    assert projection.linear.bias is not None
    (conv,) = (module for module in projection.end.modules() if isinstance(module, nn.Conv2d))
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.bias) == (width, width, (1, 1), None)


def pooled(x_BCHW: Tensor, side: int) -> Tensor:
    """Means over regions from floor(i H / side) to ceil((i + 1) H / side), and back by torch's bilinear interpolation."""
    height, width = x_BCHW.shape[-2:]
    means = x_BCHW.new_zeros(*x_BCHW.shape[:2], side, side)
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, -(-(i + 1) * height // side))
            columns = slice(j * width // side, -(-(j + 1) * width // side))
            means[:, :, i, j] = x_BCHW[:, :, rows, columns].mean((2, 3))
    return means


@pytest.mark.parametrize("size", [(9, 13), (6, 6), (4, 5), (1, 1)])
def test_psp_is_pyramid_pooling_beside_the_stage(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = PSP([4, 6], [4, 8], 3, width=5).double().eval()
    for name, buffer in head.named_buffers():  # norms that do something
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2.0) if "var" in name else nn.init.normal_(buffer)
    stage = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    features, extras = head([torch.randn(2, 4, 20, 20), stage])
    parts = [stage]
    for side, conv in zip((1, 2, 3, 6), head.pooling.convs, strict=True):
        parts.append(F.interpolate(conv(pooled(stage, side)), size, mode="bilinear", align_corners=False))
    expected = torch.cat(parts, dim=1)
    assert extras == {}
    torch.testing.assert_close(features, expected)
    cotangent = torch.randn_like(features)
    gradients = [torch.autograd.grad((form * cotangent).sum(), stage)[0] for form in (features, expected)]
    torch.testing.assert_close(*gradients)


def test_psp_has_the_published_shape() -> None:
    with torch.device("meta"):
        head = PSP([1024, 2048], [8, 8], 19)
    assert (head.channels, head.stride, head.align_corners, head.end, head.smallest_batch) == (4096, 8, False, (4096, 512, 3, False), 2)
    assert sum(parameter.numel() for parameter in head.parameters()) == 4 * (2048 * 512 + 2 * 512)
    assert PSP([6], [8], 3, width=2, bins=[2, 3]).smallest_batch == 1
    for wrong in ({"width": 0}, {"bins": []}, {"bins": [0]}):
        with pytest.raises(ValueError, match="width and bins must be at least 1"):
            PSP([6], [8], 3, **wrong)


def test_the_mean_over_an_image_is_deterministic_as_it_stands() -> None:
    """Adaptive pooling has a gradient that depends on chance on CUDA, except to one value, where torch takes a mean."""
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    assert "Mean" in type(nn.AdaptiveAvgPool2d(1)(x).grad_fn).__name__
    assert "Mean" not in type(nn.AdaptiveAvgPool2d(2)(x).grad_fn).__name__


@pytest.mark.gpu
def test_a_gpu_gives_the_same_and_deterministically(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for head in (Attention([6], [8], 3, width=8, key_width=3), PSP([6], [8], 3, width=5)):
        stage = torch.randn(2, 6, 9, 7, dtype=torch.float64)
        reference = head.double().eval()([stage])[0]
        for largest in (200, 2**26):
            monkeypatch.setattr(attention, "LARGEST_MAP", largest)
            torch.testing.assert_close(head.cuda()([stage.cuda()])[0].cpu(), reference)
        torch.use_deterministic_algorithms(True)
        try:
            head.train()([stage.cuda().requires_grad_()])[0].square().sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())
