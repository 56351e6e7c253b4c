"""Mean field against arrays made in float64, and against its definition written out over all pairs of pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.crf.mean_field import MeanField, mean_field

REFERENCE = Path(__file__).parents[1] / "reference" / "crfrnn_a.npz"


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


def weights(classes: int) -> dict[str, Tensor]:
    torch.manual_seed(3)
    names = ("spatial_weight_KK", "bilateral_weight_KK", "compatibility_KK")
    return {name: torch.eye(classes) + 0.1 * torch.randn(classes, classes) for name in names}


@pytest.mark.parametrize("diagonal", range(1, 8))
def test_a_diagonal_is_its_matrix(diagonal: int) -> None:
    torch.manual_seed(2)
    logits, image = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64) * 30
    full = {name: weight.double() for name, weight in weights(3).items()}
    short = {name: weight.diagonal().clone().requires_grad_() for name, weight in full.items()}
    chosen = [name for bit, name in enumerate(full) if diagonal & 1 << bit]
    forms = [full | {name: form[name] for name in chosen} for form in (short, {name: value.diag() for name, value in short.items()})]
    outputs = [mean_field(logits, image, iterations=2, theta_beta=12.0, **form) for form in forms]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(output.square().sum(), [short[name] for name in chosen]) for output in outputs]
    torch.testing.assert_close(*gradients)


def test_kernels_that_are_fixed_keep_nothing_of_what_they_filter() -> None:
    logits, image = torch.randn(1, 8, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32) * 255
    diagonals = dict.fromkeys(weights(8), torch.ones(8))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[:2] == (1, 8):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = mean_field(logits, image, **diagonals)
    steps, own = 5, output.untyped_storage().nbytes()
    assert sum(kept.values()) == steps * own  # the softmax of each step


def test_float32_keeps_its_precision_whatever_is_set_around_it() -> None:
    torch.manual_seed(1)
    logits, image = 4 * torch.randn(1, 3, 24, 24), torch.randint(0, 256, (1, 3, 24, 24)).float()
    expected = mean_field(logits.double(), image.double(), **weights(3))
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            with torch.autocast("cpu", torch.bfloat16):
                ours = mean_field(logits, image, **weights(3))
            assert (ours - expected).abs().max() < 5e-5
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, image = torch.randn(2, 2, 5, 3).to(dtype), torch.rand(2, 3, 5, 3) * 255
    assert mean_field(logits, image, **weights(2)).dtype == dtype
    short = {name: weight.to(dtype) for name, weight in weights(2).items()}
    for form in (weights(2), short):
        precise = mean_field(logits.float(), image, **{name: weight.float() for name, weight in form.items()})
        assert torch.equal(mean_field(logits, image, **form), precise.to(dtype))


def test_small_and_empty_images_and_no_steps() -> None:
    one = torch.randn(3, 2, 1, 1, requires_grad=True)
    output = mean_field(one, torch.zeros(3, 3, 1, 1), iterations=1, **weights(2))  # a pixel alone: K = 1
    near, alike, outer = weights(2).values()
    torch.testing.assert_close(output, one + (one.softmax(1)[..., 0, 0] @ (outer @ (near + alike)).T)[..., None, None])
    assert torch.autograd.grad(output.sum(), one)[0].isfinite().all()
    assert torch.equal(mean_field(one, torch.zeros(3, 3, 1, 1), iterations=0, **weights(2)), one)
    assert mean_field(torch.zeros(0, 2, 4, 4), torch.zeros(0, 3, 4, 4), **weights(2)).shape == (0, 2, 4, 4)


def test_wrong_input_is_refused() -> None:
    logits, image = torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 3, 4)
    for wrong in ({"filtering": "dense"}, {"normalization": "columns"}, {"iterations": -1}, {"theta_beta": 0.0}):
        with pytest.raises(ValueError, match="crf mean_field: "):
            mean_field(logits, image, **weights(2), **wrong)
    with pytest.raises(ValueError, match="does not fit"):
        mean_field(logits, image[:, :, :2], **weights(2))
    for name in weights(2):
        with pytest.raises(ValueError, match=r"must be 2 x 2, not \(3, 3\)"):
            mean_field(logits, image, **weights(2) | {name: torch.eye(3)})
    wrong_options = (
        {"filtering": "dense"}, {"normalization": "columns"}, {"iterations": 0}, {"test_iterations": -1}, {"theta_alpha": 0.0},
        {"theta_gamma": float("nan")}, {"weights": "diagonal"}, {"spatial_weight": float("inf")},
        {"learn_bandwidths": True, "filtering": "permutohedral"},
    )  # fmt: skip
    for options in wrong_options:
        with pytest.raises(ValueError, match="crf mean_field: "):
            MeanField(4, 2, **options)


def test_the_module_works_at_the_logits_stride() -> None:
    torch.manual_seed(5)
    module = MeanField(4, 3, test_iterations=3, learn_bandwidths=True, theta_alpha=40.0, theta_gamma=6.0).double().eval()
    features, image = torch.randn(2, 4, 5, 7, dtype=torch.float64), torch.rand(2, 3, 20, 28, dtype=torch.float64)
    logits, extras = module(features, image, None)
    unary = F.conv2d(features, module.classifier.weight, module.classifier.bias)
    assert torch.equal(extras["unary"], unary)
    assert tuple(extras) == module.extras
    small = 255 * F.interpolate(image, (5, 7), mode="bilinear", align_corners=False)
    eye = torch.eye(3, dtype=torch.float64)
    thetas = [torch.tensor(theta, dtype=torch.float64) for theta in (10.0, 3.0, 1.5)]
    # As many steps as the eval mode has, a quarter of the bandwidths.
    expected = literal(unary, small, thetas, [3 * eye, 5 * eye, eye], 3, "rows")
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(module.train()(features, image, None)[0], logits, atol=1e-3)
    logits.sum().backward()
    logits, _ = module.eval()(features, image, None)
    logits.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_weight_of_each_class_is_a_diagonal() -> None:
    module, full = MeanField(4, 3, weights="class"), MeanField(4, 3)
    assert {name: tuple(value.shape) for name, value in module.field.items()} == {
        "spatial_weight": (3,), "bilateral_weight": (3,), "compatibility": (3, 3),
    }  # fmt: skip
    full.classifier.load_state_dict(module.classifier.state_dict())
    features, image = torch.randn(1, 4, 3, 3), torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(module.eval()(features, image, None), full.eval()(features, image, None))


def test_the_field_is_float32_under_autocast_and_half_precision() -> None:
    module = MeanField(4, 3)
    module.eval()
    features, image = torch.randn(1, 4, 6, 5), torch.rand(1, 3, 11, 9)
    expected, _ = module(features, image, None)
    with torch.autocast("cpu", torch.bfloat16):
        logits, extras = module(features, image.bfloat16(), None)
    assert logits.dtype == torch.float32
    assert extras["unary"].dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.1


def test_it_is_built_without_memory() -> None:
    with torch.device("meta"):
        module = MeanField(4, 1000, learn_bandwidths=True)
        logits, _ = MeanField(4, 3)(torch.zeros(2, 4, 5, 6), torch.zeros(2, 3, 20, 24), None)
    assert module.field["compatibility"].is_meta
    assert logits.is_meta
    assert logits.shape == (2, 3, 5, 6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at what a compiled part gives to the next
def test_a_compiled_module_is_the_plain_one() -> None:
    torch.manual_seed(6)
    module = MeanField(4, 3, dropout=0.0, learn_bandwidths=True)
    features, image = torch.randn(2, 4, 8, 8, requires_grad=True), torch.rand(2, 3, 32, 32)
    compiled = torch.compile(module, backend="aot_eager")
    found = []
    for form in (module, compiled):
        logits, _ = form(features, image, None)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), [features, *module.parameters()])))
    for plain, ours in zip(*found, strict=True):
        assert (plain - ours).abs().max() <= 1e-4 * plain.abs().max()
