"""Window sums and products against loops in float64; superpixels against sets; the Triton kernels against the plain forms."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import kernels
from models.crf.embedded import MessagePassing
from models.kernels import taps
from models.kernels.superpixels import segment_means, segments
from models.kernels.taps import products, weighted_sum
from models.parts.layers import superpixel_mean

WINDOWS = [(3, 2), (5, 1), (3, 7), (1, 4)]
SIZES = [(5, 6), (1, 1), (9, 2), (2, 9), (7, 1), (1, 8)]


def pairs(size: tuple[int, int], kernel_size: int, dilation: int) -> list[tuple[int, int, int]]:
    """(tap, pixel, its neighbour) for all that lie inside, by the definition."""
    height, width = size
    steps = [dilation * (step - kernel_size // 2) for step in range(kernel_size)]
    found = []
    for y, x in product(range(height), range(width)):
        for tap, (down, right) in enumerate(product(steps, steps)):
            if 0 <= y + down < height and 0 <= x + right < width:
                found.append((tap, y * width + x, (y + down) * width + x + right))
    return found


@pytest.mark.parametrize(("kernel_size", "dilation"), WINDOWS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [2**20, 12])
def test_sums_and_products_equal_loops(
    size: tuple[int, int], kernel_size: int, dilation: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "BLOCK", block)
    torch.manual_seed(0)
    x, g = (torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(2, kernel_size**2, *size, dtype=torch.float64, requires_grad=True)
    total, found = torch.zeros(2, 3, size[0] * size[1], dtype=torch.float64), torch.zeros_like(weights).flatten(2)
    for tap, i, j in pairs(size, kernel_size, dilation):
        total[:, :, i] += weights.flatten(2)[:, tap, i, None] * x.flatten(2)[:, :, j]
        found[:, tap, i] += (g.flatten(2)[:, :, i] * x.flatten(2)[:, :, j]).sum(1)
    for ours, expected, inputs in (
        (weighted_sum(x, weights, kernel_size, dilation), total.view_as(x), [x, weights]),
        (products(g, x, kernel_size, dilation), found.view_as(weights), [g, x]),
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        cotangent = torch.randn_like(ours)
        for a, b in zip(*(torch.autograd.grad((form * cotangent).sum(), inputs) for form in (ours, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_derivatives_of_any_order() -> None:
    a, b = (torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(1, 9, 2, 3, dtype=torch.float64, requires_grad=True)
    found = segments(torch.randint(-1, 2, (1, 2, 3)))
    for function, inputs in (
        (lambda x, w: weighted_sum(x, w, 3, 1, found), (a, weights)),
        (lambda x, y: products(x, y, 3, 2), (a, b)),
        (lambda x: products(x, x, 3, 1), (a,)),
        (lambda x: segment_means(x, found), (a,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_segments_are_the_sets_of_equal_labels() -> None:
    labels = torch.tensor([[[7, -3, 7], [2**62, -1, 7]], [[0, 0, 0], [0, 0, 0]]])
    index, order, starts, shares = segments(labels)
    assert index.tolist() == [[1, 0, 1, 2, 0, 1], [0, 0, 0, 0, 0, 0]]
    assert starts.tolist() == [[0, 2, 5, 6, 6, 6, 6], [0, 6, 6, 6, 6, 6, 6]]
    assert index.gather(1, order).tolist() == [sorted(row) for row in index.tolist()]
    expected = torch.tensor([[0, 1 / 3.00001, 1 / 1.00001, 0, 0, 0], [1 / 6.00001, 0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_means_in_every_layout_and_precision(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 70, 6, 5, dtype=torch.float64).to(dtype).to(memory_format=memory_format)
    labels = torch.randint(-1, 4, (2, 6, 5))
    expected = torch.zeros(2, 70, 6, 5, dtype=torch.float64)
    for image, label in product(range(2), range(4)):
        inside = labels[image] == label
        expected[image][:, inside] = (x[image][:, inside].double().sum(1) / (int(inside.sum()) + 1e-5))[:, None]
    ours = superpixel_mean(x, labels)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(ours.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


INTERPRETED = """
import torch
from models.kernels import messages, taps
from models.kernels.superpixels import segments

torch.manual_seed(0)
messages.SLOTS = 3  # so that a program has several superpixels
layouts = (torch.contiguous_format, torch.channels_last)
# Among them: several blocks of channels in each layout, several tiles of pixels, superpixels larger than a tile, a map of one pixel.
cases = [(3, 2, 5, 3, 4), (5, 1, 3, 3, 5), (3, 3, 18, 2, 5), (1, 1, 3, 9, 16), (3, 2, 4, 1, 1), (3, 1, 66, 3, 12)]
for (k, d, C, h, w), dtype, layout in zip(cases, [torch.float64, torch.float32, torch.bfloat16, torch.float16] * 2, layouts * 3):
    x = torch.randn(2, C, h, w).to(dtype).to(memory_format=layout).flatten(2)
    g = torch.randn(2, C, h, w).to(dtype).flatten(2)
    weights = torch.randn(2, k * k, h * w, dtype=torch.promote_types(dtype, torch.float32))
    window = [w, k, d]
    found = list(segments(torch.randint(-1, 1 if k == 1 else 6, (2, h, w))))
    for found in [found, [*found[:3], -found[3]], []][: 3 if k == 1 else 1]:
        ours = [
            messages.weighted_sum(x, weights, window, found), messages.transposed_sum(g, weights, window, found),
            *messages.gradients(g, x, weights, window, found), messages.products(g, x, window),
        ]
        wide = [part.to(weights.dtype) for part in (x, g)]
        expected = [
            taps._weighted_sum(wide[0], weights, window, found), taps._transposed_sum(wide[1], weights, window, found),
            *taps._gradients(wide[1], wide[0], weights, window, found), taps._products(wide[1], wide[0], window),
        ]
        types = [dtype, dtype, dtype, weights.dtype, weights.dtype]
        for a, b, kind in zip(ours, expected, types, strict=True):
            assert a.dtype == kind and a.shape == b.shape, (a.dtype, kind)
            error = (a.to(b.dtype) - b).abs().max() / b.abs().max()
            assert error <= 4 * torch.finfo(kind).eps, (k, d, C, h, w, dtype, error)
print("equal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_triton_kernels_equal_the_plain_forms_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_triton_kernels_compile_ahead_of_time(capability: int, half: str) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models.kernels import messages

    shape = {"SUM": triton.language.float32, "CHANNELS": 16, "PIXELS": 128}
    window = {"KERNEL": 3, "DILATION": 2}
    types = {"index_ptr": "*i64", "order_ptr": "*i64", "starts_ptr": "*i64", "shares_ptr": "*fp64"}
    types |= {name: f"*{half}" for name in ("x_ptr", "g_ptr", "a_ptr", "b_ptr", "to_x_ptr")}
    for kernel, constants in (
        (messages.sum_kernel, {**window, "TURNED": False, "SEGMENTS": True}),
        (messages.product_kernel, window),
        (messages.gradient_kernel, {**window, "SEGMENTS": True}),
        (messages.table_kernel, {"PROGRAMS": 512}),
    ):
        fixed = constants | shape
        signature = {
            name: "constexpr" if name in fixed else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
            for name in kernel.arg_names
        }
        compiled = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]


def outcome(module: MessagePassing, features: Tensor, *rest: Tensor) -> list[Tensor]:
    """Output and gradients for a fixed cotangent."""
    features = features.detach().requires_grad_()
    output = module(features, *rest)
    cotangent = torch.arange(output.numel(), device=output.device).view_as(output).sin()
    return [output, *torch.autograd.grad((output * cotangent).sum(), [features, *module.parameters()])]


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel_size", "dilation", "size"), [(3, 2, (33, 47)), (5, 1, (16, 16)), (3, 9, (5, 64)), (1, 1, (1, 1))])
def test_gpu_equals_the_plain_form_in_float64(
    kernel_size: int, dilation: int, size: tuple[int, int], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = MessagePassing(70, kernel_size=kernel_size, dilation=dilation, normalization="absolute").double()
    features = torch.randn(2, 70, *size, dtype=torch.float64)
    image, labels = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.randint(-1, 30, (2, 64, 64))
    expected = outcome(module, features, image, labels)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
            on_gpu = module.to("cuda", dtype)
            inputs = features.to("cuda", dtype, memory_format=memory_format), image.to("cuda", dtype), labels.cuda()
            for without in (False, True):
                monkeypatch.setattr(kernels, "plain", without)
                for a, b in zip(outcome(on_gpu, *inputs), expected, strict=True):
                    assert (a.cpu().double() - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6)
            module.to("cpu", torch.float64)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_gpu_autocast_compile_determinism_and_no_waiting() -> None:
    torch.manual_seed(0)
    module = MessagePassing(64).cuda()
    features, image = torch.randn(2, 64, 40, 24, device="cuda"), torch.rand(2, 3, 160, 96, device="cuda")
    labels = torch.randint(-1, 50, (2, 160, 96), device="cuda", dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float16):
        low = features.to(dtype)
        expected = outcome(module, low.float(), image, labels)
        with torch.autocast("cuda", dtype):
            ours = outcome(module, low, image, labels)
        assert ours[0].dtype == ours[1].dtype == dtype
        for a, b in zip(ours, expected, strict=True):
            assert (a.float() - b).abs().max() <= 8 * torch.finfo(dtype).eps * b.abs().max()
    first = outcome(module, features, image, labels)
    assert all(torch.equal(a, b) for a, b in zip(first, outcome(module, features, image, labels), strict=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome(module, features, image, labels)
        superpixel_mean(features, labels[:, ::4, ::4])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    compiled = torch.compile(module)
    for a, b in zip(outcome(compiled, features, image, labels), first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
