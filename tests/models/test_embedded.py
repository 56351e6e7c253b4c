"""E-CRF's message passing against the released code's arrays and against a loop over pixels in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.crf.embedded import Embedded, MessagePassing
from models.flops import declared

REFERENCE = Path(__file__).parents[1] / "reference" / "ecrf_a.npz"


def reference() -> tuple[dict[str, Tensor], MessagePassing]:
    with np.load(REFERENCE) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    module = MessagePassing(arrays["features"].shape[1])
    with torch.no_grad():
        for conv, name in ((module.position_conv, "pos_conv"), (module.image_conv, "img_conv"), (module.compatibility_conv, "comp_conv")):
            conv.weight.copy_(arrays[name])
    return arrays, module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_the_released_codes(dtype: torch.dtype) -> None:
    arrays, module = reference()
    module.to(dtype)
    features = arrays["features"].to(dtype).requires_grad_()
    output = module(features, arrays["image"].to(dtype), arrays["superpixels"])
    (gradient,) = torch.autograd.grad((output * arrays["cotangent"]).sum(), features)
    for ours, name in ((output, "output"), (gradient, "grad_features")):
        expected = arrays[name].to(dtype)
        assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()
    module.superpixel_weight = 0
    pairwise = module(features, arrays["image"].to(dtype), None)
    assert (pairwise - arrays["output_without_superpixels"]).abs().max() <= 1e-6 * pairwise.abs().max()


def token(module: MessagePassing, image_3HW: Tensor, y: int, x: int) -> Tensor:
    """f_i, written out from the paper's definition."""
    waves = [[(math.sin, math.cos)[k % 2](place / 10000 ** ((k - k % 2) / 32)) for k in range(32)] for place in (x, y)]
    place = module.position_conv.weight[:, :, 0, 0] @ torch.tensor(waves[0] + waves[1], dtype=torch.float64)
    return torch.cat([module.image_conv.weight[:, :, 0, 0] @ image_3HW[:, y, x], place])


def literal(module: MessagePassing, features_BCHW: Tensor, image_B3HW: Tensor, labels_BHW: Tensor | None) -> Tensor:
    """Pixel by pixel; the image is already of the features' size."""
    kernel_size, dilation = module.window
    weight = module.compatibility_conv.weight[0, :, 0, 0]
    batch, channels, height, width = features_BCHW.shape
    rows = []
    for b in range(batch):
        f = {(y, x): token(module, image_B3HW[b], y, x) for y in range(height) for x in range(width)}
        for y, x in f:
            message, size = torch.zeros(channels, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
            for tap in range(kernel_size**2):
                other = (y + dilation * (tap // kernel_size - kernel_size // 2), x + dilation * (tap % kernel_size - kernel_size // 2))
                if other in f and (module.centre or other != (y, x)):
                    own, neighbour = features_BCHW[b, :, y, x], features_BCHW[b, :, other[0], other[1]]
                    seen = neighbour if module.compatibility == "neighbour" else torch.cat([own, neighbour])
                    factor = torch.sigmoid(weight @ seen) * (f[y, x] @ f[other])
                    message, size = message + factor * neighbour, size + factor.abs()
            taps = kernel_size**2 - (not module.centre)
            message = message / {"none": 1, "count": taps, "absolute": size.clamp(min=1e-30)}[module.normalization]
            total = features_BCHW[b, :, y, x] + module.pairwise_weight * message
            if labels_BHW is not None and labels_BHW[b, y, x] >= 0:
                inside = labels_BHW[b] == labels_BHW[b, y, x]
                total = total + module.superpixel_weight * features_BCHW[b][:, inside].sum(1) / (inside.sum().item() + 1e-5)
            rows.append(total)
    return torch.stack(rows).view(batch, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("compatibility", "normalization", "kernel_size", "dilation", "centre"),
    [
        ("neighbour", "none", 3, 2, True),
        ("pair", "count", 3, 1, True),
        ("neighbour", "absolute", 5, 1, True),
        ("pair", "absolute", 3, 3, True),
        ("neighbour", "count", 1, 2, True),
        ("neighbour", "none", 3, 2, False),
        ("pair", "count", 5, 1, False),
        ("pair", "absolute", 3, 4, False),
    ],
)
def test_fast_form_equals_the_loop_over_pixels(
    compatibility: str, normalization: str, kernel_size: int, dilation: int, centre: bool
) -> None:
    torch.manual_seed(1)
    module = MessagePassing(
        4, embedding=6, kernel_size=kernel_size, dilation=dilation, compatibility=compatibility, normalization=normalization, centre=centre
    ).double()
    features = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    image = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 3, (2, 4, 5))
    inputs = [features, image, *module.parameters()]
    ours, expected = module(features, image, labels), literal(module, features, image, labels)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((form * cotangent).sum(), inputs) for form in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert a.abs().max() > 0


def test_image_and_superpixels_come_at_their_own_size() -> None:
    torch.manual_seed(2)
    module = MessagePassing(4).double()
    features, image = torch.randn(1, 4, 3, 4, dtype=torch.float64), torch.rand(1, 3, 13, 17, dtype=torch.float64)
    labels = torch.randint(0, 5, (1, 13, 17), dtype=torch.int32)
    small = F.interpolate(image, (3, 4), mode="bilinear", align_corners=False)
    nearest = F.interpolate(labels[:, None].double(), (3, 4), mode="nearest")[:, 0].long()
    torch.testing.assert_close(module(features, image, labels), literal(module, features, small, nearest))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (3, 2), (5, 3)])
@pytest.mark.parametrize("labels", ["none", "one", "own"])
def test_small_maps_and_odd_superpixels(size: tuple[int, int], labels: str) -> None:
    """Maps smaller than the dilation or as large; all -1, one superpixel, each pixel its own with huge ids."""
    torch.manual_seed(3)
    module = MessagePassing(3, dilation=3).double()
    features = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    pixels = size[0] * size[1]
    choices = {"none": torch.full((pixels,), -1), "one": torch.full((pixels,), 9), "own": 2**62 - torch.arange(pixels) * 2**40}
    superpixels = choices[labels].view(1, *size)
    inputs = [features, *module.parameters()]
    ours, expected = module(features, image, superpixels), literal(module, features, image, superpixels)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(form.square().sum(), inputs) for form in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_pairs_begin_as_a_convolution_of_both_features_does() -> None:
    torch.manual_seed(4)
    module = MessagePassing(50, compatibility="pair")
    weight = module.compatibility_conv.weight
    assert weight.shape == (1, 100, 1, 1)
    assert 0.05 < weight.abs().max() <= 0.1  # 1 / sqrt(2 C)
    with torch.no_grad():
        weight[:, :50] = 0
    plain = MessagePassing(50)
    plain.load_state_dict(module.state_dict() | {"compatibility_conv.weight": weight[:, 50:]})
    features, image = torch.randn(2, 50, 5, 6), torch.rand(2, 3, 20, 24)
    labels = torch.randint(0, 4, (2, 5, 6))
    torch.testing.assert_close(module(features, image, labels), plain(features, image, labels))


@pytest.mark.parametrize("options", [{}, {"compatibility": "pair", "normalization": "absolute"}])
def test_layouts_modes_and_compilation_change_nothing(options: dict[str, str]) -> None:
    torch.manual_seed(5)
    module = MessagePassing(6, **options).double()
    features, image = torch.randn(2, 6, 9, 5, dtype=torch.float64), torch.rand(2, 3, 36, 20, dtype=torch.float64)
    labels, cotangent = torch.randint(-1, 5, (2, 36, 20)), torch.randn(2, 6, 9, 5, dtype=torch.float64)

    def values(form: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        output = form(x, image, labels)
        return [output, *torch.autograd.grad((output * cotangent).sum(), [x, *module.parameters()])]

    expected = values(module, features)
    last = features.to(memory_format=torch.channels_last)
    assert module(last, image, labels).is_contiguous(memory_format=torch.channels_last)
    turned = features.transpose(2, 3).contiguous().transpose(2, 3)
    compiled = torch.compile(module, backend="aot_eager")
    for ours in (values(module, last), values(module, turned), values(compiled, features)):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(module(features, image, labels), expected[0])
    with torch.device("meta"):
        shapes = MessagePassing(6, **options)(torch.empty(2, 6, 9, 5), torch.empty(2, 3, 36, 20), torch.empty(2, 36, 20, dtype=torch.int32))
    assert shapes.shape == (2, 6, 9, 5)


def test_second_derivatives_exist() -> None:
    torch.manual_seed(6)
    module = MessagePassing(2, embedding=2).double()
    image, labels = torch.rand(1, 3, 3, 4, dtype=torch.float64), torch.randint(-1, 2, (1, 3, 4))
    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x, image, labels), features)


def test_the_gradient_of_the_parameters_does_not_need_that_of_the_features() -> None:
    module = MessagePassing(4)
    features, image, labels = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 6, 6), torch.zeros(1, 6, 6, dtype=torch.int32)
    frozen = torch.autograd.grad(module(features, image, labels).square().sum(), list(module.parameters()))
    whole = torch.autograd.grad(module(features.requires_grad_(), image, labels).square().sum(), list(module.parameters()))
    for a, b in zip(frozen, whole, strict=True):
        torch.testing.assert_close(a, b)


def test_its_multiply_adds_are_declared() -> None:
    """Nine of F for the messages, one for mu; nine of the colours, a metric of 3 x 3, and nine of the positions in one image."""
    module, pixels = MessagePassing(8), 6 * 7
    with torch.no_grad(), declared() as counts, FlopCounterMode(display=False) as counter:
        module(torch.randn(2, 8, 6, 7), torch.rand(2, 3, 6, 7), torch.zeros(2, 6, 7, dtype=torch.int32))
    expected = 2 * pixels * (2 * 8 * 9 + 2 * 8 + 2 * 3 * 9 + 2 * 9 + 32 * 9)
    assert sum(counts) + counter.get_total_flops() == expected


def test_each_half_switches_off_with_its_work() -> None:
    features, image, labels = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 6, 6), torch.zeros(1, 6, 6, dtype=torch.int32)
    neither = MessagePassing(4, pairwise_weight=0, superpixel_weight=0)
    assert torch.equal(neither(features, image, None), features)
    assert not any(parameter.requires_grad for parameter in neither.parameters())
    superpixels_only = MessagePassing(4, pairwise_weight=0)
    superpixels_only.kernel = None  # not to be called
    torch.testing.assert_close(superpixels_only(features, image, labels), features + 0.1 * features.mean((2, 3), keepdim=True))
    with pytest.raises(ValueError, match="superpixel_weight: 0"):
        MessagePassing(4)(features, image, None)
    assert Embedded(4, 2).needs_superpixels
    assert not Embedded(4, 2, superpixel_weight=0).needs_superpixels


def test_wrong_options_are_refused() -> None:
    for wrong in (
        {"kernel_size": 4}, {"dilation": 0}, {"compatibility": "both"}, {"normalization": "softmax"}, {"embedding": 0},
        {"pairwise_weight": math.nan}, {"superpixel_weight": math.inf}, {"kernel_size": 1, "centre": False},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="crf embedded"):
            Embedded(4, 2, **wrong)


@pytest.mark.parametrize("pairwise_weight", [0.2, 0.0])
def test_superpixels_of_other_images_are_refused(pairwise_weight: float) -> None:
    """A kernel on a GPU would read past their end."""
    module, features, image = MessagePassing(4, pairwise_weight=pairwise_weight), torch.randn(2, 4, 6, 6), torch.rand(2, 3, 24, 24)
    for batch in (1, 3):
        with pytest.raises(ValueError, match="do not fit features"):
            module(features, image, torch.zeros(batch, 24, 24, dtype=torch.int32))


def test_dividing_by_vanished_weights_has_a_finite_gradient() -> None:
    module = MessagePassing(4, normalization="absolute")
    with torch.no_grad():
        module.compatibility_conv.weight.fill_(1)
    for depth in (-1e4, -22.0, -15.0):  # sigmoids of 0, of 1e-38 and of 1e-26
        features = torch.full((1, 4, 5, 5), depth, requires_grad=True)
        output = module(features, torch.rand(1, 3, 5, 5), torch.zeros(1, 5, 5, dtype=torch.int32))
        for value in (output, *torch.autograd.grad(output.square().sum(), [features, *module.parameters()])):
            assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_float32_in_a_network_of_half_precision(dtype: torch.dtype) -> None:
    """Places beyond 256 do not exist in bfloat16."""
    torch.manual_seed(7)
    module = MessagePassing(4).to(dtype)
    features, image = torch.randn(1, 4, 3, 300).to(dtype), torch.rand(1, 3, 12, 1200).to(dtype)
    labels = torch.randint(0, 9, (1, 12, 1200))
    low = module(features, image, labels)
    expected = module.float()(features.float(), image.float(), labels)
    assert low.dtype == dtype
    assert (low.float() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_parameters_are_the_papers() -> None:
    assert sum(parameter.numel() for parameter in MessagePassing(512).parameters()) == 2656
    assert sum(parameter.numel() for parameter in MessagePassing(7).parameters()) == 2144 + 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32_under_autocast(dtype: torch.dtype) -> None:
    arrays, module = reference()
    features = arrays["features"].to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        low = module(features, arrays["image"], arrays["superpixels"])
    (gradient,) = torch.autograd.grad(low, features, arrays["cotangent"].to(dtype))
    precise = features.detach().float().requires_grad_()
    expected = module(precise, arrays["image"], arrays["superpixels"])
    assert low.dtype == gradient.dtype == dtype
    assert torch.equal(low, expected.to(dtype))
    (expected_gradient,) = torch.autograd.grad(expected, precise, arrays["cotangent"].to(dtype).float())
    assert (gradient - expected_gradient).abs().max() <= 2 * torch.finfo(dtype).eps * expected_gradient.abs().max()


def test_no_copies_of_the_features_are_kept_for_the_gradient() -> None:
    module, features = MessagePassing(64), torch.randn(1, 64, 24, 24, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(features, torch.rand(1, 3, 96, 96), torch.zeros(1, 24, 24, dtype=torch.int32))
    own = features.untyped_storage().nbytes()
    assert own < sum(kept.values()) < 4 * own
