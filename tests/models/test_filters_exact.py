"""The exact filter against all pairs of points in float64: values, gradients, what is skipped, and what is kept in memory."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import kernels
from models.filters.exact import Exact
from models.filters.spatial import Spatial
from models.kernels import tiles
from models.kernels.precision import full_precision, product


def literal(features_BDN: Tensor, values_BVN: Tensor) -> Tensor:
    apart_BNN = (features_BDN[:, :, :, None] - features_BDN[:, :, None]).square().sum(1)
    return torch.einsum("bij,bvj->bvi", torch.exp(-apart_BNN / 2), values_BVN)


def points(batch: int, depth: int, count: int, spread: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(count)
    features = (torch.randn(batch, depth, count, dtype=dtype) * spread).requires_grad_()
    return features, torch.randn(batch, 3, count, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("tile", [7, 32, 1000])
@pytest.mark.parametrize(("batch", "depth", "count", "spread"), [(2, 5, 301, 4.0), (1, 2, 128, 1.0), (3, 1, 97, 30.0), (1, 5, 1, 1.0)])
def test_values_and_gradients_are_those_of_all_pairs(
    tile: int, batch: int, depth: int, count: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiles.TILE, "cpu", tile)
    features, values = points(batch, depth, count, spread)
    ours, expected = Exact(features)(values), literal(features, values)
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    for form in zip(*(torch.autograd.grad((x * cotangent).sum(), (values, features)) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(*form, rtol=1e-11, atol=1e-11)


def test_skipped_pairs_stay_below_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.TILE, "cpu", 8)
    features, values = points(2, 3, 700, 5.0)
    values = values.detach().sign()
    expected = literal(features, values).detach()
    computed = []
    for tolerance in (0.0, 1e-6, 1e-2):
        ours = Exact(features, tolerance=tolerance)
        computed.append(sum(len(group.first_P) for group in ours.tiles.groups))
        error = (ours(values) - expected).abs().max().item()
        assert error <= max(tolerance, 1e-12)
    count = len(ours.tiles.centres_TD) // 2
    assert computed[0] == 2 * count * (count + 1) / 2
    assert computed[0] > 1.5 * computed[1] > 1.8 * computed[2]
    assert error > 1e-7  # something was skipped
    with pytest.raises(ValueError, match="filter exact: tolerance"):
        Exact(features, tolerance=-1.0)


def test_half_of_an_images_pairs_is_skipped() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    bands = 85 * torch.stack([(rows / 30).sin(), (columns / 40).cos(), (rows + columns) / 224]) + torch.randn(3, 96, 128)
    features = torch.cat([torch.stack([rows, columns]) / 160, bands / 3]).flatten(1)[None]
    groups = Exact(features).tiles.groups
    assert sum(len(group.first_P) * (1 + group.mirrored) for group in groups) < 0.5 * 128**2


@pytest.mark.parametrize("wide", [False, True])
def test_float32_is_as_good_as_subtracting_first(wide: bool) -> None:
    # Colours of 0 to 85 standard deviations: expanded about the image's centre they would err by 1e-4.
    torch.manual_seed(0)
    colours = torch.randint(0, 256, (1, 5, 12 if wide else 3, 1)) + torch.randint(0, 2 if not wide else 128, (1, 5, 12 if wide else 3, 200))
    features = (colours / 3).flatten(2).float().requires_grad_()
    values = torch.rand(1, 2, features.shape[2], requires_grad=True)
    double = [features.detach().double().requires_grad_(), values.detach().double().requires_grad_()]
    cotangent = torch.randn_like(values)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            ours = Exact(features)(values)
        found = torch.autograd.grad((ours * cotangent).sum(), (features, values))
    finally:
        torch.set_float32_matmul_precision(before)
    expected = literal(*double)
    assert ours.dtype == torch.float32
    assert (ours - expected).abs().max() <= 3e-6 * expected.abs().max()
    for a, b in zip(found, torch.autograd.grad((expected * cotangent).sum(), double), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_nothing_of_the_size_of_a_kernel_is_kept() -> None:
    features, values = points(1, 5, 1500, 3.0, torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        Exact(features)(values)
    assert sum(kept.values()) <= 4 * 1500 * (3 + 5)


def test_empty_and_half_precision_input() -> None:
    for batch, depth, count in ((0, 5, 700), (2, 5, 0), (2, 0, 5)):
        features = torch.randn(batch, depth, count, requires_grad=True)
        values = torch.randn(batch, 3, count, requires_grad=True)
        output = Exact(features)(values)
        assert output.shape == (batch, 3, count)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), (features, values)))
    features, values = points(1, 5, 40, 1.0, torch.float16)
    output = Exact(features)(values)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, literal(features.float(), values.float()))


def test_operations_are_counted() -> None:
    features, values = points(2, 5, 40, 1.0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Exact(features)(values)
    assert counter.get_total_flops() == 2 * 2 * 40**2 * (3 + 5 + 2)


def test_points_that_are_alike_need_no_splitting() -> None:
    values = torch.rand(1, 2, 1000, dtype=torch.float64)
    same = Exact(torch.full((1, 5, 1000), 85.0, dtype=torch.float64))(values)
    torch.testing.assert_close(same, values.sum(2, keepdim=True).expand_as(same))


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (130, 3)])
def test_the_spatial_filter_is_the_filter_of_positions(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theta = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, math.prod(size), dtype=torch.float64, requires_grad=True)
    places = torch.cartesian_prod(*(torch.arange(float(length), dtype=torch.float64) for length in size)).T[None] / theta
    ours, expected = Spatial(*size, theta, values)(values), literal(places.expand(2, -1, -1), values)
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(Spatial(*size, 2.5, values)(values), expected)
    for form in zip(*(torch.autograd.grad((x * cotangent).sum(), (values, theta)) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(*form)


def test_a_product_broadcasts_and_leaves_the_settings_alone() -> None:
    a, b = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(product, (a, b))
    assert torch.autograd.gradcheck(product, (b.detach(), torch.randn(6, 2, dtype=torch.float64, requires_grad=True)))
    before = torch.backends.mkldnn.matmul.fp32_precision
    with full_precision(a.device):
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == before


INTERPRETED = """
import torch
from models.filters import exact; from models.kernels import tiles
from models.flops import declared
from models.kernels import gaussian

tiles.TILE["cpu"] = 24
torch.manual_seed(0)
cases = [(2, 5, 45, 37, 4.0), (1, 2, 60, 3, 30.0), (1, 1, 1, 1, 1.0), (0, 5, 30, 2, 1.0), (1, 5, 0, 2, 1.0)]
for batch, depth, count, channels, spread in cases:
    found = tiles.build(torch.randn(batch, depth, count) * spread, 8.0)
    values, gradient = (found.gather(torch.randn(batch, channels, count)) for _ in range(2))
    with declared() as flops:
        ours = [gaussian.filtered(found, gradient), gaussian.pulls(found, values, gradient) / exact.TO_BASE_2]
    expected = [exact._filtered(found, gradient), exact._gradients(found, values, gradient)[1]]
    for a, b in zip(ours, expected):
        assert a.shape == b.shape
        assert not b.numel() or (a - b).abs().max() <= 3e-6 * b.abs().max(), (depth, count)
    size = found.offsets_TDn.shape[2]
    assert sum(flops) == 2 * len(found.neighbours[1]) * size**2 * (3 * channels + 3 * depth)
print("equal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_triton_kernels_equal_the_plain_form_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernels_compile_ahead_of_time(capability: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models.kernels import gaussian

    shape = {"DEPTH": 5, "COLUMNS": 8, "BLOCK": 64, "CHANNELS": 32}
    types = {"starts": "*i32", "neighbours": "*i32", "channels": "i32", "size": "i32"}
    for kernel in (gaussian.filter_kernel, gaussian.pull_kernel):
        fixed = {name: value for name, value in shape.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in fixed else types.get(name, "*fp32") for name in kernel.arg_names}
        compiled = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        assert "tf32" not in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("batch", "depth", "count", "channels"), [(2, 5, 3000, 21), (1, 2, 1000, 70), (1, 5, 1, 1)])
def test_cuda_equals_the_cpu(plain: bool, batch: int, depth: int, count: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "plain", plain)
    torch.manual_seed(0)
    features = (4 * torch.randn(batch, depth, count)).requires_grad_()
    values, cotangent = torch.randn(batch, channels, count, requires_grad=True), torch.randn(batch, channels, count)
    expected = literal(features.double(), values.double())
    wanted = torch.autograd.grad((expected * cotangent).sum(), (features, values))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        for context in (torch.autocast("cuda", enabled=False), torch.autocast("cuda", torch.bfloat16)):
            for function in (lambda f, v: Exact(f)(v), torch.compile(lambda f, v: Exact(f)(v))):
                moved = [tensor.detach().cuda().requires_grad_() for tensor in (features, values)]
                with context:
                    ours = function(*moved)
                found = torch.autograd.grad((ours * cotangent.cuda()).sum(), moved)
                for a, b in ((ours, expected), *zip(found, wanted, strict=True)):
                    assert (a.cpu() - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1e-3)
    finally:
        torch.set_float32_matmul_precision(before)
