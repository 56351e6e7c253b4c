"""ConvCRF against the released code's arrays, and against dense matrices in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.crf.conv import Conv, conv_crf, grid
from models.filters import blur as blurs
from models.filters.window import Window, window_filter, window_kernel
from models.flops import declared

REFERENCE = Path(__file__).parents[1] / "reference" / "convcrf_a.npz"
CASES = {
    "f7_blur4_iter5": {"filter_size": 7},
    "f11_blur4_iter5": {},
    "f5_blur1_iter5": {"filter_size": 5, "blur": 1},
    "f5_blur1_iter1": {"filter_size": 5, "blur": 1, "iterations": 1},
    "f5_blur1_sym_iter5": {"filter_size": 5, "blur": 1, "normalization": "symmetric"},
    "f7_blur4_compat": {"filter_size": 7, "compatibility": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_values_are_the_released_codes(case: str, dtype: torch.dtype) -> None:
    with np.load(REFERENCE) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    options = dict(CASES[case])
    if options.pop("compatibility", False):
        options["compatibility_KK"] = arrays["compat_weight"][:, :, 0, 0]
    ours = conv_crf(arrays["unary"].to(dtype), arrays["image"], start="logits", **options)
    assert ours.dtype == dtype
    assert (ours - arrays[case]).abs().max() <= 1e-5 * arrays[case].abs().max()  # they are float32


def lowering(size: int, blur: int) -> Tensor:
    """The matrix that averages what there is of each block of pixels."""
    above = math.ceil((blur - size % blur) % blur / 2)
    blocks = torch.arange(size) + above
    matrix = torch.stack([(blocks // blur == block).double() for block in range(math.ceil(size / blur))])
    return matrix / matrix.sum(1, keepdim=True)


def raising(size: int, blur: int) -> Tensor:
    """The matrix of bilinear interpolation to the pixels' centres, constant beyond the outermost blocks' centres."""
    above, small = math.ceil((blur - size % blur) % blur / 2), math.ceil(size / blur)
    matrix = torch.zeros(size, small, dtype=torch.float64)
    for pixel in range(size):
        place = min(max((pixel + above + 0.5) / blur - 0.5, 0), small - 1)
        low = min(int(place), small - 1)
        matrix[pixel, low] += 1 - (place - low)
        matrix[pixel, min(low + 1, small - 1)] += place - low
    return matrix


def near(size: tuple[int, int], filter_size: int) -> Tensor:
    """Whether one pixel is in the other's window: NN."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij"))
    distance = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return (distance <= filter_size // 2).double()


def literal(
    unary: Tensor, image: Tensor, *, filter_size=11, blur=4, iterations=5, theta_beta=13.0, theta_gamma=3.0, theta_alpha=None,
    appearance=10.0, smoothness=3.0, weight=0.2, start="softmax", normalization="none", compatibility_KK=None, position_2HW=None,
) -> Tensor:  # fmt: skip
    """One image after the other, every kernel as a matrix over all pixels."""
    height, width = unary.shape[2:]
    low = torch.kron(lowering(height, blur), lowering(width, blur))
    high = torch.kron(raising(height, blur), raising(width, blur))
    window = near((math.ceil(height / blur), math.ceil(width / blur)), filter_size)
    places = torch.stack(torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij"))
    learned = places if position_2HW is None else position_2HW
    found = []
    for one, colours in zip(unary, image, strict=True):
        features = [colours / theta_beta] if theta_alpha is None else [colours / theta_beta, places / theta_alpha]
        matrices = []
        for factor, feature in ((appearance, torch.cat(features)), (smoothness, learned / theta_gamma)):
            small = low @ feature.flatten(1).T
            matrix = high @ (window * torch.exp(-(small[:, None] - small).square().sum(2) / 2)) @ low
            if normalization == "symmetric":
                root = matrix.sum(1).rsqrt()
                matrix = root[:, None] * matrix * root
            matrices.append(factor * matrix)
        logs = one.flatten(1).log_softmax(0)
        q = logs if start == "logits" else logs.exp()
        for step in range(iterations):
            message = q @ sum(matrices).T
            if compatibility_KK is not None:
                message = message + compatibility_KK @ message
            share = weight.reshape(-1, 1) if isinstance(weight, Tensor) else weight
            q = (1 - share) * logs + share * message
            if step < iterations - 1:
                q = q.softmax(0)
        found.append(q.view_as(one))
    return torch.stack(found)


def inputs(height: int, width: int, batch: int = 2, classes: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(height * width)
    unary = torch.randn(batch, classes, height, width, generator=draw, dtype=torch.float64)
    image = torch.rand(batch, 3, height, width, generator=draw, dtype=torch.float64) * 60
    return unary.requires_grad_(), image.requires_grad_()


OPTIONS = {
    "the defaults": {},
    "sharp": {"filter_size": 5, "blur": 1},
    "sharp, of one tap": {"filter_size": 1, "blur": 1, "iterations": 2},
    "half": {"filter_size": 3, "blur": 2, "iterations": 3},
    "released start": {"filter_size": 3, "blur": 2, "start": "logits"},
    "position in the colours": {"filter_size": 5, "blur": 2, "theta_alpha": 5.0},
    "symmetric": {"filter_size": 3, "blur": 1, "normalization": "symmetric"},
    "symmetric, half": {"filter_size": 5, "blur": 2, "normalization": "symmetric", "theta_alpha": 7.0},
    "one iteration": {"filter_size": 3, "blur": 4, "iterations": 1, "weight": 0.7},
    "+CT": {"filter_size": 3, "blur": 2, "compatibility": True, "position": True},
    "+CT, symmetric": {"filter_size": 5, "blur": 1, "compatibility": True, "position": True, "normalization": "symmetric"},
}


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (6, 11), (5, 2), (1, 1)])
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_the_dense_form_with_all_its_gradients(options: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blurs.BAND, "cpu", 2 * 3 * size[1] * 4)  # so that even these images take several bands
    chosen, (unary, image) = dict(OPTIONS[options]), inputs(*size)
    learned = {name: torch.tensor(float(chosen.get(name) or value), dtype=torch.float64) for name, value in NUMBERS.items()}
    learned["weight"] = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    if "theta_alpha" in chosen:
        learned["theta_alpha"] = torch.tensor(chosen["theta_alpha"], dtype=torch.float64)
    if chosen.pop("compatibility", False):
        learned["compatibility_KK"] = torch.randn(3, 3, dtype=torch.float64) / 4
    if chosen.pop("position", False):
        learned["position_2HW"] = torch.randn(2, *size, dtype=torch.float64) * 3
    for tensor in learned.values():
        tensor.requires_grad_()
    ours, expected = (form(unary, image, **{**chosen, **learned}) for form in (conv_crf, literal))
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn_like(ours)
    wanted = [unary, image, *learned.values()]
    gradients = (torch.autograd.grad((form * cotangent).sum(), wanted, allow_unused=True) for form in (ours, expected))
    for name, found, true in zip(["unary", "image", *learned], *gradients, strict=True):
        true = torch.zeros_like(found) if true is None else true
        assert (found - true).abs().max() <= 1e-9 * true.abs().max().clamp(min=1e-3), name


NUMBERS = {"theta_beta": 13.0, "theta_gamma": 3.0, "appearance": 2.0, "smoothness": 1.5}


def test_a_window_over_all_of_the_image_is_exact_mean_field() -> None:
    unary, image = (tensor.detach() for tensor in inputs(10, 10, batch=1))
    logs = unary[0].log_softmax(0)
    q = logs.exp()
    pixels = [(y, x) for y in range(10) for x in range(10)]
    for step in range(4):
        scores = torch.zeros_like(q)
        for y, x in pixels:
            message = torch.zeros(3, dtype=torch.float64)
            for v, u in pixels:
                colours = (image[0, :, y, x] - image[0, :, v, u]).square().sum()
                alike = 4 * torch.exp(-colours / (2 * 20**2)) + 2 * math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 3**2))
                message += alike * q[:, v, u]
            scores[:, y, x] = 0.9 * logs[:, y, x] + 0.1 * message
        q = scores if step == 3 else scores.softmax(0)
    for filter_size in (19, 21):
        ours = conv_crf(
            unary, image, filter_size=filter_size, blur=1, iterations=4, theta_beta=20.0, appearance=4.0, smoothness=2.0, weight=0.1
        )
        torch.testing.assert_close(ours[0], q, rtol=1e-11, atol=1e-11)
    smaller = conv_crf(unary, image, filter_size=17, blur=1, iterations=4, theta_beta=20.0, appearance=4.0, smoothness=2.0, weight=0.1)
    assert (smaller[0] - q).abs().max() > 1e-3


@pytest.mark.parametrize("filter_size", range(3, 22, 2))
@pytest.mark.parametrize("blur", [1, 2, 4])
def test_any_size_with_any_window_keeps_its_shape(filter_size: int, blur: int) -> None:
    for height, width in ((1, 9), (13, 3), (7, 10)):
        unary, image = (tensor.detach() for tensor in inputs(height, width, batch=1))
        ours = conv_crf(unary, image, filter_size=filter_size, blur=blur, iterations=2)
        torch.testing.assert_close(ours, literal(unary, image, filter_size=filter_size, blur=blur, iterations=2), rtol=1e-11, atol=1e-11)


def test_no_iteration_gives_the_logarithms_and_no_image_nothing() -> None:
    unary, image = inputs(5, 6)
    torch.testing.assert_close(conv_crf(unary, image, iterations=0), unary.log_softmax(1))
    nothing = conv_crf(unary[:0], image[:0])
    assert nothing.shape == (0, 3, 5, 6)


def test_the_released_layout_of_weights_and_scalars_of_one_number_are_taken() -> None:
    unary, image = inputs(5, 6)
    numbers = {name: torch.tensor([value], requires_grad=True) for name, value in NUMBERS.items()}
    ours = conv_crf(unary, image, weight=torch.full((1, 3, 1, 1), 0.2), **numbers)
    torch.testing.assert_close(ours, conv_crf(unary, image, weight=0.2, **NUMBERS), rtol=1e-6, atol=1e-6)
    ours.sum().backward()
    assert all(number.grad is not None and number.grad.shape == (1,) for number in numbers.values())


def test_a_filter_is_its_own_transpose_and_the_gradients_are_right() -> None:
    window = Window.of((4, 5), 5)
    features = [torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True), torch.randn(1, 2, 4, 5, dtype=torch.float64)]
    weights = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (2.0, 0.5)]
    q = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    def filtered(q: Tensor, feature: Tensor, *weights: Tensor) -> Tensor:
        return window_filter(q, window_kernel([feature, features[1]], weights, window), window)

    assert torch.autograd.gradcheck(filtered, (q, features[0], *weights))
    kernel, other = window_kernel(features, weights, window), torch.randn_like(q)
    torch.testing.assert_close((other * window_filter(q, kernel, window)).sum(), (q * window_filter(other, kernel, window)).sum())


@pytest.mark.parametrize("learnt", ["theta_beta", "theta_gamma", "theta_alpha", "appearance", "weight", "position_2HW"])
def test_any_one_input_may_learn_alone(learnt: str) -> None:
    unary, image = (tensor.detach() for tensor in inputs(6, 7))
    value = grid((6, 7), unary) if learnt == "position_2HW" else torch.tensor(0.5 if learnt == "weight" else 3.0, dtype=torch.float64)
    value.requires_grad_()
    options = {"filter_size": 3, "blur": 2, "normalization": "symmetric"}
    gradients = [
        torch.autograd.grad(form(unary, image, **options, **{learnt: value}).square().sum(), value)[0] for form in (conv_crf, literal)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert gradients[1].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    unary, image = (tensor.detach().float() for tensor in inputs(9, 14))
    low = conv_crf(unary.to(dtype), image.to(dtype))
    assert low.dtype == dtype
    assert torch.equal(low, conv_crf(unary.to(dtype).float(), image.to(dtype).float()).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_crf(unary, image), conv_crf(unary, image))
        compatible = conv_crf(unary, image, compatibility_KK=torch.full((3, 3), 0.1))
    assert torch.equal(compatible, conv_crf(unary, image, compatibility_KK=torch.full((3, 3), 0.1)))


def test_the_memorys_order_does_not_matter() -> None:
    unary, image = (tensor.detach() for tensor in inputs(9, 14))
    torch.testing.assert_close(
        conv_crf(unary.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)), conv_crf(unary, image)
    )


def test_one_full_size_map_is_kept_for_the_gradient() -> None:
    unary, image = torch.randn(1, 8, 64, 64, requires_grad=True), torch.rand(1, 3, 64, 64) * 255
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv_crf(unary, image, filter_size=5)
    own = unary.untyped_storage().nbytes()
    assert own < sum(kept.values()) < 2 * own


def test_its_operations_are_counted() -> None:
    unary, image = torch.zeros(2, 5, 16, 16), torch.zeros(2, 3, 16, 16)
    with declared() as counts:
        conv_crf(unary, image, filter_size=3, blur=2, iterations=3)
    assert sum(counts) == 2 * 2 * 8 * 8 * (3 * 9 * 5 + 5 * 5)


WRONG = {
    "filter_size": [4, 0, -3],
    "blur": [0],
    "start": ["uniform"],
    "normalization": ["rows"],
    "iterations": [0],
    "test_iterations": [0],
    "stride": [0],
    "theta_beta": [0.0, -1.0, math.nan, math.inf],
    "theta_alpha": [0.0],
    "weight": [0.0],
    "appearance": [-1.0, math.nan],
    "smoothness": [-1.0, math.nan, math.inf],
    "position": [[0, 4], [4]],
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_options_are_refused(option: str) -> None:
    for value in WRONG[option]:
        with pytest.raises(ValueError, match=f"crf conv: .*{option}"):
            Conv(4, 2, **{option: value})
    with pytest.raises(ValueError, match="both 0"):
        Conv(4, 2, appearance=0.0, smoothness=0.0)


def test_what_does_not_fit_together_is_refused() -> None:
    unary, image = torch.zeros(1, 2, 4, 6), torch.zeros(1, 3, 4, 6)
    for arguments in (
        {"unary_BKHW": unary, "image_B3HW": image[..., :5]},
        {"unary_BKHW": unary, "image_B3HW": image, "compatibility_KK": torch.zeros(3, 3)},
        {"unary_BKHW": unary, "image_B3HW": image, "position_2HW": torch.zeros(2, 6, 4)},
        {"unary_BKHW": unary, "image_B3HW": image, "filter_size": 2},
        {"unary_BKHW": unary, "image_B3HW": image, "iterations": -1},
        {"unary_BKHW": unary, "image_B3HW": image, "theta_gamma": 0.0},
    ):
        with pytest.raises(ValueError, match="crf conv"):
            conv_crf(**arguments)
    with pytest.raises(ValueError, match=r"position is of 8 x 12 pixels, it cannot filter 8 x 13"):
        Conv(4, 2, position=[8, 12])(torch.zeros(1, 4, 2, 3), torch.zeros(1, 3, 8, 13), None)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_layer_filters_upsampled_logits_with_values_that_learn(stride: int) -> None:
    torch.manual_seed(0)
    layer = Conv(
        4, 3, filter_size=3, blur=2, iterations=2, test_iterations=4, theta_alpha=40.0, dropout=0.0, compatibility=True, stride=stride
    ).double()
    features, image = torch.randn(2, 4, 5, 6, dtype=torch.float64) * 30, torch.rand(2, 3, 17, 22, dtype=torch.float64)
    logits = F.conv2d(features, layer.classifier.weight, layer.classifier.bias)
    size = (17, 22) if stride == 1 else (9, 11)
    up, small = (F.interpolate(tensor, size, mode="bilinear") for tensor in (logits, image))
    for training, iterations in ((True, 2), (False, 4)):
        scores, extras = layer.train(training)(features, image, None)
        expected = literal(
            up, 255 * small, filter_size=3, blur=2, iterations=iterations, theta_alpha=40.0 / stride, theta_beta=13.0,
            theta_gamma=3.0 / stride, compatibility_KK=torch.full((3, 3), 0.1 * math.sqrt(2 / 3), dtype=torch.float64),
        )  # fmt: skip
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(extras, {"unary": logits})
    scores.square().sum().backward()
    field = ("theta_alpha", "theta_beta", "theta_gamma", "appearance", "smoothness", "weight", "compatibility")
    names = {"classifier.weight", "classifier.bias", *(f"field.{name}" for name in field)}
    assert {name for name, parameter in layer.named_parameters() if parameter.grad is not None and parameter.grad.any()} == names


def test_what_is_0_or_not_trainable_does_not_learn_and_coordinates_do() -> None:
    fixed = Conv(4, 3, trainable=False, position=[8, 12])
    assert {name for name, _ in fixed.named_parameters()} == {"classifier.weight", "classifier.bias", "field.position"}
    position = fixed.field["position"]
    assert position[:, 5, 7].tolist() == [5, 7]
    scores, _ = fixed(torch.randn(1, 4, 2, 3), torch.rand(1, 3, 8, 12), None)
    scores.square().sum().backward()
    assert position.grad is not None
    assert position.grad.abs().max() > 0
    without = Conv(4, 3, appearance=0.0)
    assert "appearance" not in without.field
    assert without.field["weight"].shape == (3,)
    scores, _ = without(torch.randn(1, 4, 2, 3), torch.rand(1, 3, 8, 12), None)
    assert scores.isfinite().all()


def test_the_layer_under_autocast_gives_float32() -> None:
    layer = Conv(4, 3, blur=2)
    with torch.autocast("cpu", torch.bfloat16):
        scores, extras = layer(torch.randn(2, 4, 5, 6), torch.rand(2, 3, 19, 22), None)
    assert scores.dtype == torch.float32
    assert extras["unary"].dtype == torch.bfloat16
    with torch.device("meta"):
        layer = Conv(4, 3, compatibility=True, position=[8, 12])
        assert all(parameter.is_meta for parameter in layer.parameters())
        assert layer(torch.zeros(2, 4, 5, 6), torch.zeros(2, 3, 8, 12), None)[0].shape == (2, 3, 8, 12)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"normalization": "symmetric", "theta_alpha": 40.0}])
def test_a_gpu_gives_the_same(options: dict[str, object]) -> None:
    unary, image = inputs(37, 53)
    torch.set_float32_matmul_precision("high")
    try:
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            found = []
            for device in ("cpu", "cuda"):
                own = unary.detach().to(device, torch.float64 if device == "cpu" else dtype).requires_grad_()
                theta = torch.tensor(13.0, device=device, dtype=own.dtype, requires_grad=True)
                scores = conv_crf(own, image.detach().to(own), theta_beta=theta, **options)
                found.append([scores, *torch.autograd.grad(scores.square().sum(), (own, theta))])
            for expected, ours in zip(*found, strict=True):
                assert (ours.cpu() - expected).abs().max() <= tolerance * expected.abs().max()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["theta_beta", "theta_gamma"])
def test_a_bandwidth_that_is_none_is_refused_by_name(name: str) -> None:
    unary, image = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    for call in (lambda: Conv(4, 2, **{name: None}), lambda: conv_crf(unary, image, **{name: None})):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            call()
