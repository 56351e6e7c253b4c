"""KSAC: the shared convolution against dilated convolutions and loops over pixels in float64, and its head against the paper's sum."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.kernels
from models.flops import declared
from models.heads.ksac import KSAC, shared_atrous_conv
from models.kernels.shifts import collect, spread


def inputs(batch: int, channels: int, outputs: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(channels + size[0])
    x = torch.randn(batch, channels, *size, generator=draw, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, generator=draw, dtype=torch.float64) / (3 * channels**0.5)
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (x, weight))


def dilated(x: Tensor, weight: Tensor, rates: Sequence[int]) -> list[Tensor]:
    return [F.conv2d(x, weight, padding=rate, dilation=rate) for rate in rates]


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.linspace(0, 9, y.numel(), dtype=torch.float64).sin().add(index).view(y.shape).to(y) for index, y in enumerate(outputs)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rates", [(1,), (6, 12, 18), (1, 6, 12, 18, 24), (2, 2, 40), (7, 1)])
@pytest.mark.parametrize("size", [(33, 33), (5, 12), (1, 1), (1, 9), (7, 1), (14, 6)])
def test_values_and_gradients_are_those_of_dilated_convolutions(size: tuple[int, int], rates: tuple[int, ...], channels_last: bool) -> None:
    x, weight = inputs(2, 3, 5, size)
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    ours, expected = shared_atrous_conv(x, weight, rates), dilated(x, weight, rates)
    assert len(ours) == len(rates)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert a.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    given = cotangents(ours)
    for a, b in zip(*(torch.autograd.grad(outputs, (x, weight), given) for outputs in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_convolution_is_the_loop_over_pixels_and_taps() -> None:
    x, weight = inputs(2, 2, 3, (4, 5))
    for rate, ours in zip((1, 2, 4), shared_atrous_conv(x, weight, [1, 2, 4]), strict=True):
        expected = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
        for row in range(4):
            for column in range(5):
                for tap in range(9):
                    i, j = row + rate * (tap // 3 - 1), column + rate * (tap % 3 - 1)
                    if 0 <= i < 4 and 0 <= j < 5:
                        expected[:, :, row, column] += x[:, :, i, j] @ weight[:, :, tap // 3, tap % 3].T
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_derivatives_are_right_to_the_second_order() -> None:
    x, weight = inputs(1, 2, 1, (2, 3))
    assert torch.autograd.gradcheck(lambda *given: tuple(shared_atrous_conv(*given, (1, 2, 5))), (x, weight))
    assert torch.autograd.gradgradcheck(lambda *given: tuple(shared_atrous_conv(*given, (1, 2, 5))), (x, weight))


def test_it_can_be_used_twice_in_part_and_without_a_gradient_to_one_input() -> None:
    x, weight = inputs(1, 3, 3, (6, 7))

    def twice(form: Any) -> Tensor:
        first = form(x, weight, (1, 3))
        second = form(torch.tanh(first[1]) + x, weight, (2, 9, 1))
        return second[0].square().sum() + second[2].mul_(2).sum()  # neither first[0] nor second[1]; one changed in place

    for a, b in zip(*(torch.autograd.grad(twice(form), (x, weight)) for form in (shared_atrous_conv, dilated)), strict=True):
        torch.testing.assert_close(a, b)
    loss = twice(shared_atrous_conv)
    assert torch.equal(*(torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2)))
    for frozen, free in ((x, weight), (weight, x)):
        frozen.requires_grad_(False)
        (a,), (b,) = (
            torch.autograd.grad(sum(y.square().sum() for y in form(x, weight, (1, 3))), free) for form in (shared_atrous_conv, dilated)
        )
        torch.testing.assert_close(a, b)
        frozen.requires_grad_()
    assert shared_atrous_conv(x[:0], weight, (1, 2))[1].shape == (0, 3, 6, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_each_product_and_each_sum_once(dtype: torch.dtype) -> None:
    rates, unit = (1, 6, 12, 24), torch.finfo(dtype).eps / 2
    x, weight = inputs(2, 64, 8, (19, 17), dtype)
    outputs = shared_atrous_conv(x, weight, rates)
    exact_x, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    expected = dilated(exact_x, exact_weight, rates)
    # What the taps' products sum to in magnitude, before they cancel.
    products = sum(F.conv2d(exact_x, tap[:, :, None, None]).abs().amax() for tap in exact_weight.flatten(2).unbind(2))
    for ours, exact in zip(outputs, expected, strict=True):
        assert ours.dtype == dtype
        assert ((ours.double() - exact).abs() <= 1.1 * unit * (products + exact.abs())).all()
    given = cotangents(outputs)
    found = torch.autograd.grad(outputs, (x, weight), given)
    wanted = torch.autograd.grad(expected, (exact_x, exact_weight), [cotangent.double() for cotangent in given])
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - exact).abs().max() <= 4 * unit * exact.abs().max()


def test_sums_do_not_lose_small_terms_in_half_precision() -> None:
    x = torch.ones(1, 1, 3, 3, dtype=torch.bfloat16)
    weight = torch.ones(1, 1, 3, 3, dtype=torch.bfloat16)
    weight[0, 0, 1, 1] = 256  # to which bfloat16 adds 1 in vain
    assert shared_atrous_conv(x, weight, [1])[0][0, 0, 1, 1] == 264
    x.requires_grad_()
    outputs = shared_atrous_conv(x, torch.ones_like(weight), [3] * 9)
    given = [torch.full_like(y, 256.0 if index == 0 else 1.0) for index, y in enumerate(outputs)]
    assert torch.autograd.grad(outputs, x, given)[0][0, 0, 1, 1] == 264


def test_autocast_is_that_of_convolutions() -> None:
    x, weight = inputs(2, 4, 3, (7, 8), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = shared_atrous_conv(x, weight, (1, 3)), dilated(x, weight, (1, 3))
        double = shared_atrous_conv(x.double(), weight.double(), (1,))[0]
    assert double.dtype == torch.float64
    assert [y.dtype for y in ours] == [y.dtype for y in expected] == [torch.bfloat16] * 2
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(ours, (x, weight), [torch.ones_like(y) for y in ours])
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2


def test_what_is_kept_for_the_gradient_are_input_and_weight() -> None:
    x, weight = inputs(2, 6, 5, (9, 8), torch.float32)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shared_atrous_conv(x, weight, (1, 2, 3))
    assert sum(kept.values()) <= x.nbytes + weight.nbytes


def test_additions_are_declared() -> None:
    ones, weight = torch.ones(1, 1, 4, 6), torch.ones(1, 1, 3, 3)
    with declared() as counts:
        outputs = shared_atrous_conv(ones, weight, (1, 2, 5, 9))
    assert sum(counts) == sum(int(y.sum()) - y.numel() for y in outputs)  # all but the centre's, of each pixel


@pytest.mark.parametrize("rates", [(0,), (1, -2)])
def test_rates_below_one_and_other_kernels_are_refused(rates: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rates must be at least 1"):
        shared_atrous_conv(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), rates)
    with pytest.raises(ValueError, match="3x3"):
        shared_atrous_conv(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 5, 5), [1])
    with pytest.raises(ValueError, match="head ksac: rates must"):
        KSAC((8,), (16,), 2, rates=rates, decoder=False)


def head(**given: Any) -> KSAC:
    torch.manual_seed(0)
    return KSAC((6, 16), (4, 16), 3, **{"width": 8, "rates": [1, 2, 5], "low_level": 4, **given})


def stages(batch: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(batch, *shape, generator=draw, dtype=torch.float64) for shape in ((6, 25, 29), (16, 7, 8))]


@pytest.mark.parametrize("shared", [True, False])
def test_the_head_is_the_papers_sum_merged_as_aspp(shared: bool) -> None:
    network = head(shared=shared, decoder=False).double()
    for norm in network.pyramid.norms:
        nn.init.normal_(norm[0].weight)
        nn.init.normal_(norm[0].bias)
    x = stages()[-1]
    weights = [network.pyramid.convs[index if shared is False else 0].weight for index in range(3)]
    pyramid = torch.zeros(3, 8, 7, 8, dtype=torch.float64)
    for rate, weight, norm in zip((1, 2, 5), weights, network.pyramid.norms, strict=True):
        y = F.conv2d(x, weight, padding=rate, dilation=rate)
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + norm[0].eps).sqrt()
        pyramid += (y * norm[0].weight[:, None, None] + norm[0].bias[:, None, None]).relu()
    features, extras = network.train()([x])
    assert extras == {}
    pooled = network.pool[1](x.mean((2, 3), keepdim=True)).expand(-1, -1, 7, 8)
    torch.testing.assert_close(features, torch.cat([pooled, network.point(x), pyramid], dim=1))
    assert features.shape[1] == network.channels == network.end.inputs


def test_each_rate_has_a_batch_norm_of_its_own() -> None:
    network = head().double()
    norms = [norm[0] for norm in network.pyramid.norms]
    assert len({id(parameter) for norm in norms for parameter in norm.parameters()}) == 6
    features, _ = network(stages())
    features.square().sum().backward()
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (norms[one].running_var - norms[other].running_var).abs().max() > 1e-3
        assert (norms[one].weight.grad - norms[other].weight.grad).abs().max() > 1e-3
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    assert all(parameter.grad is not None for parameter in network.parameters())


def parameters(**given: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in KSAC((256, 2048), (4, 16), 21, **given).parameters())


def test_sharing_saves_the_papers_parameters() -> None:
    saved = parameters(rates=(6, 12, 18), shared=False) - parameters(rates=(6, 12, 18))
    assert saved == 2 * 9 * 2048 * 256 == pytest.approx(9.44e6, rel=1e-3)
    assert parameters() - parameters(rates=(6, 12, 18)) == 2 * 2 * 256  # two batch norms
    assert parameters(decoder=False) == 9 * 2048 * 256 + 2 * 2048 * 256 + 7 * 2 * 256
    assert parameters(decoder=False) - parameters(decoder=False, pooling=False) == 2048 * 256 + 2 * 256


def test_variants_state_what_they_give() -> None:
    plus, plain, bare = head(), head(decoder=False), head(decoder=False, pooling=False)
    assert (plus.stride, plus.channels, plus.end, plus.smallest_batch) == (4, 8, (8, 8, 3, False), 2)
    assert (plain.stride, plain.channels, plain.end, plain.smallest_batch) == (16, 24, (24, 8, 1, False), 2)
    assert (bare.channels, bare.end, bare.smallest_batch) == (16, (16, 8, 1, False), 1)
    given = [stage.float() for stage in stages(1)]
    assert plus.eval()(given)[0].shape == (1, 8, 25, 29)
    assert bare.train()(given[1:])[0].shape == (1, 16, 7, 8)
    meta = head(shared=False).to("meta")([stage.to("meta", torch.float32) for stage in stages()])[0]
    assert meta.shape == (3, 8, 25, 29)
    for wrong, message in (
        ({"rates": []}, "head ksac: rates must"), ({"rates": [2, 2]}, "head ksac: rates must"), ({"width": 0}, "head ksac: width"),
        ({"low_level": 0}, "low_level"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            head(**wrong)
    with pytest.raises(ValueError, match="head ksac: its decoder needs a stage of stride 4"):
        KSAC((8,), (16,), 2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # within the check, of a list's tensors
def test_the_operations_keep_torchs_contract() -> None:
    taps = torch.randn(2, 9 * 3, 5, 4).to(memory_format=torch.channels_last).unflatten(1, (9, 3)).detach().requires_grad_()
    maps = [torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(spread, (taps, [1, 3]))
    torch.library.opcheck(collect, (maps, [1, 3]))


INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from models.kernels import shifts, shifts_triton
torch.manual_seed(0)
cases = (
    (torch.float32, (2, 3, 4, 5), [1, 3, 12]), (torch.float32, (1, 130, 1, 3), [1]), (torch.float32, (0, 2, 3, 3), [2]),
    (torch.float64, (1, 3, 2, 70), [2]), (torch.bfloat16, (2, 1, 4, 4), [2]), (torch.float32, (1, 3, 1, 1), [2]),
)
for dtype, (batch, channels, height, width), rates in cases:
    allowed = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-7}[dtype]
    for layout in (torch.contiguous_format, torch.channels_last):
        taps = torch.randn(batch, 9 * channels, height, width).to(dtype).to(memory_format=layout).unflatten(1, (9, channels))
        maps = [torch.randn(batch, channels, height, width).to(dtype).to(memory_format=layout) for _ in rates]
        maps[-1] = maps[-1][:, :, :1, :1].expand(batch, channels, height, width)
        found = [*shifts_triton.spread(taps, rates), shifts_triton.collect(maps, rates)]
        expected = [*shifts.spread(taps, rates), shifts.collect(maps, rates)]
        for a, b in zip(found, expected, strict=True):
            assert a.stride() == b.stride(), (a.stride(), b.stride())
            torch.testing.assert_close(a, b, rtol=allowed, atol=allowed)
print("equal")
"""

COMPILED = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models.kernels import shifts_triton
for capability, kind, accumulator, channels_last in ((80, "bf16", tl.float32, True), (90, "fp64", tl.float64, False)):
    for kernel in (shifts_triton.spread_kernel, shifts_triton.collect_kernel):
        constants = {"RATES": (1, 6), "ACCUMULATOR": accumulator, "PIXELS": 16, "CHANNELS": 16, "CHANNELS_LAST": channels_last}
        signature = {}
        for name in kernel.arg_names:
            if name in constants or name.endswith("_c" if channels_last else "_w"):
                signature[name] = "constexpr"
                constants.setdefault(name, 1)
            elif name.endswith("ptrs"):
                signature[name] = ("*" + kind,) * 2
            else:
                signature[name] = "*" + kind if name.endswith("ptr") else "i32"
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


@pytest.mark.parametrize(("script", "word"), [(INTERPRETED, "equal"), (COMPILED, "compiled")])
def test_triton_kernels(script: str, word: str) -> None:
    """Equal to the plain forms in Triton's interpreter; machine code of two architectures comes out of its compiler."""
    pytest.importorskip("triton")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == word, result.stderr


@pytest.fixture
def tensor_cores() -> Iterator[None]:
    """Products of float32 in TF32, as training may set it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_on_a_gpu_kernels_and_plain_forms_are_equal(
    dtype: torch.dtype, allowed: float, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [1, 6, 12, 18, 24]
    for channels, height, width in ((24, 33, 35), (1, 1, 1), (256, 97, 65)):
        taps = torch.randn(2, 9 * channels, height, width, device="cuda", dtype=dtype).to(memory_format=layout).unflatten(1, (9, channels))
        maps = [torch.randn(2, channels, height, width, device="cuda", dtype=dtype).to(memory_format=layout) for _ in rates]
        forms = []
        for plain in (False, True):
            monkeypatch.setattr(models.kernels, "plain", plain)
            forms.append([*spread(taps, rates), collect(maps, rates)])
        for a, b in zip(*forms, strict=True):
            assert a.stride() == b.stride()
            torch.testing.assert_close(a, b, rtol=allowed, atol=10 * allowed)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_the_convolution_is_that_of_a_cpu(compiled: bool, autocast: bool) -> None:
    rates, dtype = (1, 6, 12, 18, 24), torch.float32 if autocast else torch.float64
    x, weight = inputs(2, 40, 24, (33, 29))
    expected = dilated(x, weight, rates)
    wanted = [*expected, *torch.autograd.grad(expected, (x, weight), cotangents(expected))]
    form = torch.compile(shared_atrous_conv) if compiled else shared_atrous_conv
    for layout in (torch.contiguous_format, torch.channels_last):
        there, kernel = (tensor.detach().to("cuda", dtype).to(memory_format=layout).requires_grad_() for tensor in (x, weight))
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            outputs = form(there, kernel, rates)
        assert all(y.dtype == (torch.bfloat16 if autocast else dtype) for y in outputs)
        found = [*outputs, *torch.autograd.grad(outputs, (there, kernel), [y.to(outputs[0]) for y in cotangents(expected)])]
        for ours, exact in zip(found, wanted, strict=True):
            assert (ours.cpu().double() - exact).abs().max() <= (2e-2 if autocast else 1e-11) * exact.abs().max()
