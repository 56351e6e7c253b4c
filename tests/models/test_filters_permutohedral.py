"""The permutohedral lattice against the released one's arrays, against itself point by point, and against the exact kernel."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.filters import FILTERS
from models.filters.permutohedral import Permutohedral
from models.flops import declared

REFERENCE = Path(__file__).parents[1] / "reference" / "crfrnn_a.npz"


def image_features(image_3HW: Tensor, theta_alpha: float, theta_beta: float) -> Tensor:
    height, width = image_3HW.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([torch.stack([x, y]).to(image_3HW) / theta_alpha, image_3HW / theta_beta]).flatten(1)[None]


def exact(features_BDN: Tensor, values_BVN: Tensor) -> Tensor:
    return values_BVN @ torch.exp(-0.5 * torch.cdist(features_BDN.mT.double(), features_BDN.mT.double()).square()).to(values_BVN)


Corner = tuple[int, ...]


def simplex(point_D: Sequence[float]) -> list[tuple[Corner, float]]:
    """The corners of a point's simplex and their weights: the nearest origin of all around, and a linear system for the weights."""
    dimensions = len(point_D)
    corners = dimensions + 1
    place_C = np.zeros(corners)
    for d, value in enumerate(point_D):  # d + 1 ones, then minus their sum: orthogonal to all before
        axis_C = np.array([1.0] * (d + 1) + [-(d + 1.0)] + [0.0] * (dimensions - d - 1))
        place_C += value * math.sqrt(2 / 3) * corners * axis_C / np.linalg.norm(axis_C)
    around = itertools.product(*[(math.floor(value / corners), math.ceil(value / corners)) for value in place_C])
    origins = [np.array(found) * corners for found in around if sum(found) == 0]
    origin_C = min(origins, key=lambda found: np.linalg.norm(place_C - found))
    order = sorted(range(corners), key=lambda c: (origin_C - place_C)[c])
    found = []
    for remainder in range(corners):
        corner = origin_C + remainder
        corner[order[corners - remainder :]] -= corners
        # The first `corners - remainder` of the order, those that are farthest above the origin, are raised.
        found.append(corner)
    system = np.vstack([np.array(found).T, np.ones(corners)])
    weights = np.linalg.lstsq(system, np.append(place_C, 1.0), rcond=None)[0]
    assert weights.min() > -1e-9  # the point lies in it
    return [(tuple(int(value) for value in corner), float(weight)) for corner, weight in zip(found, weights, strict=True)]


def literal(features_DN: Tensor, values_VN: Tensor) -> Tensor:
    """The lattice as a dictionary from corners to values, in float64."""
    dimensions = len(features_DN)
    corners = dimensions + 1
    simplices = [simplex(point) for point in features_DN.double().T.tolist()]
    table: dict[Corner, Tensor] = {}
    for n, found in enumerate(simplices):
        for corner, weight in found:
            table[corner] = table.get(corner, 0) + weight * values_VN[:, n].double()
    nothing = torch.zeros(len(values_VN), dtype=torch.float64)
    for axis in range(corners):
        step = [corners * (c == axis) - 1 for c in range(corners)]
        beside = [{corner: tuple(a + sign * b for a, b in zip(corner, step, strict=True)) for corner in table} for sign in (1, -1)]
        table = {corner: table[corner] + 0.5 * sum(table.get(side[corner], nothing) for side in beside) for corner in table}
    scale = (4 * math.pi / 3) ** (dimensions / 2) * math.sqrt(corners) / 2**corners
    return scale * torch.stack([sum((weight * table[corner] for corner, weight in found), nothing) for found in simplices], 1)


def points(dimensions: int, count: int, spread: float = 1.0, batch: int = 1) -> Tensor:
    return spread * torch.randn(batch, dimensions, count, dtype=torch.float64)


def test_mean_field_on_it_is_the_released_codes() -> None:
    with np.load(REFERENCE) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    size = arrays["image"].shape[1:]
    spatial = Permutohedral(image_features(arrays["image"], 3.0, 3.0)[:, :2])
    bilateral = Permutohedral(image_features(arrays["image"], 160.0, 3.0))
    logits, ones = arrays["logits"].flatten(1)[None], torch.ones(1, 1, size.numel())
    weights = [arrays[f"{name}_weight"].float() for name in ("spatial", "bilateral")]
    scores = logits
    for _ in range(int(arrays["iterations"])):
        messages = [kernel(scores.softmax(1)) / kernel(ones) for kernel in (spatial, bilateral)]
        scores = logits + arrays["compatibility"].float() @ (weights[0] @ messages[0] + weights[1] @ messages[1])
    expected = arrays["permutohedral_output"].flatten(1)[None]
    assert (scores - expected).abs().max() < 5e-4 * expected.abs().max()
    assert torch.equal(scores.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(("dimensions", "spread"), [(1, 2.0), (2, 1.0), (3, 0.7), (5, 0.5), (7, 0.3)])
def test_equals_the_lattice_point_by_point(dimensions: int, spread: float) -> None:
    torch.manual_seed(dimensions)
    features, values = points(dimensions, 30, spread), torch.randn(1, 3, 30, dtype=torch.float64)
    ours = Permutohedral(features)(values)
    torch.testing.assert_close(ours[0], literal(features[0], values[0]), rtol=1e-10, atol=1e-10)
    alone = torch.stack([Permutohedral(features[:, :, [n]])(values[:, :, [n]])[0, :, 0] for n in range(30)], 1)
    assert (ours[0] - alone).abs().max() > 0.1  # points met on the lattice, or nothing was compared


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_evenly_dense_points_get_the_exact_sums(dimensions: int) -> None:
    spacing = {1: 0.02, 2: 0.2, 3: 0.4}[dimensions]
    axis = torch.arange(-6, 6, spacing)
    features = torch.stack(torch.meshgrid(*[axis] * dimensions, indexing="ij")).flatten(1)[None]
    sums = Permutohedral(features)(torch.ones(1, 1, features.shape[2]))[0, 0]
    inside = features[0].abs().amax(0) < 2
    density = (2 * math.pi) ** (dimensions / 2) / spacing**dimensions
    assert sums[inside].mean() == pytest.approx(density, rel=0.01)
    assert (sums[inside] / density - 1).abs().max() < 0.12


def test_approximates_the_exact_filter_on_an_image() -> None:
    with np.load(REFERENCE) as file:
        image, logits = torch.from_numpy(file["image"]), torch.from_numpy(file["logits"])
    values, ones = logits.flatten(1)[None].softmax(1), torch.ones(1, 1, image[0].numel())
    for theta_alpha, theta_beta in ((160.0, 3.0), (80.0, 13.0)):
        features = image_features(image, theta_alpha, theta_beta)
        lattice = Permutohedral(features)
        ratio = lattice(ones) / exact(features, ones)
        assert 0.5 < ratio.mean() < 1.1
        means, expected = lattice(values) / lattice(ones), exact(features, values) / exact(features, ones)
        assert (means - expected).abs().mean() < 0.2 * expected.std()


def test_the_gradient_is_the_adjoint_and_the_derivative_of_the_weights() -> None:
    torch.manual_seed(0)
    for dimensions in (2, 5):
        features = points(dimensions, 12, 0.6, batch=2).requires_grad_()
        values = torch.randn(2, 2, 12, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda f, v: Permutohedral(f)(v), (features, values))
        lattice, cotangent = Permutohedral(features.detach()), torch.randn(2, 2, 12, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((lattice(values) * cotangent).sum(), values)
        one_by_one = torch.eye(24, dtype=torch.float64).view(24, 2, 12).permute(1, 0, 2)
        matrix = lattice(one_by_one).view(2, 2, 12, 12)  # of image b with the unit values of image c: its own are b = c
        for b in range(2):
            torch.testing.assert_close(gradient[b], torch.einsum("nm,vm->vn", matrix[b, b], cotangent[b]))
            asymmetry = (matrix[b, b] - matrix[b, b].T).abs().max()
            assert 0 < asymmetry < 0.4 * matrix[b, b].max()  # where corners are missing the order of the axes counts


def test_one_lattice_serves_many_values_and_backward_passes() -> None:
    features, values = points(3, 9).requires_grad_(), torch.randn(1, 70, 9, dtype=torch.float64)  # more columns than go at a time
    lattice = Permutohedral(features)
    whole = lattice(values)
    torch.testing.assert_close(whole, torch.cat([lattice(part) for part in values.split(1, 1)], 1))
    torch.testing.assert_close(lattice(2 * values + 1), 2 * whole + lattice(torch.ones_like(values)))
    gradients = [torch.autograd.grad(lattice(values).sum(), features)[0] for _ in range(2)]
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_a_batch_is_its_images() -> None:
    torch.manual_seed(1)
    features, values = points(5, 200, 0.7, batch=3), torch.randn(3, 4, 200, dtype=torch.float64)
    features[1] += 40
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        both = Permutohedral(features.to(dtype))(values.to(dtype))
        assert both.dtype == dtype
        alone = torch.cat([Permutohedral(features[[b]].to(dtype))(values[[b]].to(dtype)) for b in range(3)])
        torch.testing.assert_close(both, alone, rtol=close, atol=close)
        torch.testing.assert_close(both.double(), Permutohedral(features)(values), rtol=close, atol=10 * close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    features, values = points(2, 300).to(dtype), torch.rand(1, 2, 300).to(dtype)
    low = Permutohedral(features)(values)
    assert low.dtype == dtype
    assert torch.equal(low, Permutohedral(features.float())(values.float()).to(dtype))


def test_equal_points_share_all() -> None:
    for dimensions in (2, 5):
        features = torch.tensor([3.7, -1.2, 0.4, 9.9, 2.2])[:dimensions, None].expand(1, -1, 50)
        values = torch.randn(1, 3, 50)
        out = Permutohedral(features)(values)
        one = Permutohedral(features[:, :, :1])(values.sum(2, keepdim=True))
        torch.testing.assert_close(out, one.expand_as(out), rtol=1e-4, atol=1e-4)
        assert 0.3 < Permutohedral(features[:, :, :1])(torch.ones(1, 1, 1)).item() < 1.6  # of the exact 1
    assert Permutohedral(torch.zeros(1, 5, 1))(torch.ones(1, 1, 1)).item() == pytest.approx(1.374 * (1 + 2**-6), abs=1e-3)  # once around


@pytest.mark.parametrize("dimensions", [2, 5, 12])
def test_far_points_are_strangers(dimensions: int) -> None:
    """Coordinates that no packing into 62 bits holds, and none that loses a point's place in its simplex."""
    torch.manual_seed(2)
    places = torch.randint(-(2**30), 2**30, (1, dimensions, 40), dtype=torch.float64)
    features = (places[..., None] + points(dimensions, 40)[..., None] * torch.tensor([0.0, 1e-9])).flatten(2)  # pairs
    values = torch.randn(1, 2, 80, dtype=torch.float64)
    pairs = [Permutohedral(features[:, :, n : n + 2])(values[:, :, n : n + 2]) for n in range(0, 80, 2)]
    torch.testing.assert_close(Permutohedral(features)(values), torch.cat(pairs, 2), rtol=1e-5, atol=1e-5)


def test_refuses_what_has_no_place() -> None:
    for wrong in (math.nan, math.inf, -1e13):
        with pytest.raises(ValueError, match="permutohedral"):
            Permutohedral(torch.tensor([[[0.0, wrong]]]))


def test_nothing_in_nothing_out() -> None:
    for shape in ((1, 5, 0), (0, 5, 4)):
        values = torch.zeros(shape[0], 3, shape[2], requires_grad=True)
        out = Permutohedral(torch.zeros(shape))(values)
        assert out.shape == values.shape
        out.sum().backward()
        assert values.grad is not None


def test_it_is_in_the_table_and_counts_its_operations() -> None:
    lattice = FILTERS["permutohedral"](torch.zeros(1, 2, 5))
    with declared() as counts:
        lattice(torch.ones(1, 7, 5))
    assert counts == [2 * 7 * (2 * 5 * 3 + 2 * 3 * 3)]  # splat and slice of 5 points, two neighbours of 3 corners along 3 axes


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    torch.manual_seed(3)
    features, values = points(5, 5000, 0.8, batch=2), torch.randn(2, 21, 5000, dtype=torch.float64)
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        here, there = ([x.to(device, dtype).requires_grad_() for x in (features, values)] for device in ("cpu", "cuda"))
        outs = [Permutohedral(f)(v) for f, v in (here, there)]
        torch.testing.assert_close(outs[0], outs[1].cpu(), rtol=close, atol=close)
        for a, b in zip(*(torch.autograd.grad(out.square().sum(), x) for out, x in zip(outs, (here, there), strict=True)), strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=100 * close, atol=100 * close)
