"""The separable Gaussian filter, in blocks and whole, against the kernel over all pairs of pixels."""

import pytest
import torch

from models.filters import spatial
from models.filters.spatial import Spatial


@pytest.mark.parametrize(
    ("size", "theta"), [((9, 7), 2.0), ((5, 150), 1.0), ((90, 4), 0.4), ((1, 300), 3.0), ((200, 1), 0.05), ((1, 1), 3.0)]
)
@pytest.mark.parametrize("learns", [False, True])
def test_equals_the_kernel_over_all_pairs(size: tuple[int, int], theta: float, learns: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, size[0] * size[1], dtype=torch.float64, requires_grad=True)
    parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=learns)
    places = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).double()
    apart = (places[:, None] - places).square().sum(-1)
    expected = values @ torch.exp(-apart / (2 * parameter**2))
    ours = Spatial(*size, parameter if learns else theta, values)(values)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    inputs = [values, parameter] if learns else [values]
    cotangent = torch.randn_like(values)
    for a, b in zip(*(torch.autograd.grad((form * cotangent).sum(), inputs) for form in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_known_bandwidths_take_blocks_and_others_the_whole() -> None:
    values = torch.zeros(1, 1, 4 * 500)
    known, learnt, wide = (Spatial(4, 500, theta, values) for theta in (3.0, torch.tensor(3.0), 160.0))
    assert [len(kernel.column_blocks) for kernel in (known, learnt, wide)] == [8, 1, 1]
    assert len(known.row_blocks) == 1
    products = sum((own.stop - own.start) * (near.stop - near.start) for own, near in known.column_blocks)
    assert products < 500 * 500 / 4
    assert spatial.REACH == 9
