"""Mean field against arrays made in float64, and against its definition written out over all pairs of pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.crf.mean_field import mean_field

REFERENCE = Path(__file__).parent / "reference" / "crfrnn_a.npz"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_five_steps_are_the_references(dtype: torch.dtype, tolerance: float) -> None:
    with np.load(REFERENCE) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    names = {"spatial_weight_KK": "spatial_weight", "bilateral_weight_KK": "bilateral_weight", "compatibility_KK": "compatibility"}
    weights = {name: arrays[array] for name, array in names.items()}
    output = mean_field(arrays["logits"][None].to(dtype), arrays["image"][None].to(dtype), **weights)
    assert output.dtype == dtype
    assert (output[0] - arrays["exact_output"]).abs().max() <= tolerance


def literal(logits_BKHW: Tensor, image_B3HW: Tensor, thetas: list[Tensor], weights: list[Tensor], steps: int, normalization: str) -> Tensor:
    """Every kernel as an N x N matrix."""
    alpha, beta, gamma = thetas
    near, alike, outer = weights
    height, width = logits_BKHW.shape[-2:]
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    apart = (places[:, None] - places).square().sum(-1)
    results = []
    for logits_KHW, image_3HW in zip(logits_BKHW, image_B3HW, strict=True):
        colours = image_3HW.flatten(1).T
        differ = (colours[:, None] - colours).square().sum(-1)
        kernels = [torch.exp(-apart / (2 * gamma**2)), torch.exp(-apart / (2 * alpha**2) - differ / (2 * beta**2))]
        if normalization == "rows":
            kernels = [kernel / kernel.sum(1, keepdim=True) for kernel in kernels]
        elif normalization == "symmetric":
            kernels = [kernel / (kernel.sum(1, keepdim=True) * kernel.sum(1)).sqrt() for kernel in kernels]
        unary = scores = logits_KHW.flatten(1).T
        for _ in range(steps):
            q = scores.softmax(1)
            scores = unary + (kernels[0] @ q @ near.T + kernels[1] @ q @ alike.T) @ outer.T
        results.append(scores.T.view_as(logits_KHW))
    return torch.stack(results)


@pytest.mark.parametrize(("normalization", "size", "steps"), [("rows", (5, 7), 3), ("symmetric", (6, 3), 2), ("none", (4, 4), 2)])
def test_values_and_gradients_are_the_definitions(normalization: str, size: tuple[int, int], steps: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, *size, dtype=torch.float64)
    image = torch.rand(2, 3, *size, dtype=torch.float64) * 30
    thetas = [torch.tensor(value, dtype=torch.float64) for value in (4.0, 12.0, 1.5)]
    weights = [torch.eye(3, dtype=torch.float64) * 0.5 + 0.1 * torch.randn(3, 3, dtype=torch.float64) for _ in range(3)]
    inputs = [tensor.requires_grad_() for tensor in (logits, image, *thetas, *weights)]
    expected = literal(logits, image, thetas, weights, steps, normalization)
    ours = mean_field(
        logits, image, iterations=steps, theta_alpha=thetas[0], theta_beta=thetas[1], theta_gamma=thetas[2],
        spatial_weight_KK=weights[0], bilateral_weight_KK=weights[1], compatibility_KK=weights[2], normalization=normalization,
    )  # fmt: skip
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((form * cotangent).sum(), inputs) for form in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert b.abs().max() > 1e-4
