"""Resizing, superpixel means and the projection against literal forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts.layers import End, Projection, conv_norm_act, resize, resize_by_products, resize_nearest, superpixel_mean


def literal_mean(features_BCHW: Tensor, superpixels_BHW: Tensor) -> Tensor:
    result = torch.zeros_like(features_BCHW)
    for image, labels_HW in enumerate(superpixels_BHW):
        for label in set(labels_HW.flatten().tolist()):
            if label >= 0:
                inside = labels_HW == label
                total_C = features_BCHW[image][:, inside].sum(1)
                result[image][:, inside] = (total_C / (int(inside.sum()) + 1e-5))[:, None]
    return result


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_superpixel_mean_is_the_mean_within_each_image(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 5, 7, 6, dtype=torch.float64)
    labels = torch.randint(-2, 4, (3, 7, 6)).to(dtype)
    torch.testing.assert_close(superpixel_mean(features, labels), literal_mean(features, labels), rtol=1e-12, atol=1e-12)


def test_superpixel_mean_takes_any_ids() -> None:
    features = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    huge = torch.tensor([2**62, 7, 2**40])[labels]
    torch.testing.assert_close(superpixel_mean(features, huge), superpixel_mean(features, labels), rtol=0, atol=0)
    small = superpixel_mean(features, labels.to(torch.uint8))
    torch.testing.assert_close(small, literal_mean(features, labels))
    assert superpixel_mean(features, torch.full((2, 4, 4), -1)).abs().max() == 0
    with pytest.raises(ValueError, match="do not fit"):
        superpixel_mean(features, labels[:, :2])


def test_superpixel_mean_has_the_gradient_of_the_literal_form() -> None:
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 3, (2, 4, 5))
    assert torch.autograd.gradcheck(lambda x: superpixel_mean(x, labels), features)
    (ours,) = torch.autograd.grad(superpixel_mean(features, labels).square().sum(), features)
    (expected,) = torch.autograd.grad(literal_mean(features, labels).square().sum(), features)
    torch.testing.assert_close(ours, expected)


def test_superpixel_mean_sums_half_precision_in_float32() -> None:
    features = (torch.rand(1, 1, 64, 64) + 100).to(torch.bfloat16)
    labels = torch.zeros(1, 64, 64, dtype=torch.int32)
    mean = superpixel_mean(features, labels)
    assert mean.dtype == torch.bfloat16
    assert (mean.float() - features.float().mean()).abs().max() < 0.5


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (3, 3), (13, 20), (1, 1), (6, 31)])
def test_resizing_by_products_is_interpolation(size: tuple[int, int], align_corners: bool) -> None:
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    ours = resize_by_products(x, size, align_corners)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((form * weight).sum(), x)[0] for form in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(resize(x, size, align_corners), expected, rtol=0, atol=0)


@pytest.mark.parametrize("source", [(48, 56), (49, 100), (97, 33)])
@pytest.mark.parametrize("size", [(12, 14), (49, 49), (7, 200), (96, 128)])
def test_nearest_is_torchs_for_any_integers(source: tuple[int, int], size: tuple[int, int]) -> None:
    labels = torch.randint(-1, 60000, (2, *source), dtype=torch.int32)
    expected = F.interpolate(labels[:, None].double(), size, mode="nearest")[:, 0]
    assert torch.equal(resize_nearest(labels, size).double(), expected)


def test_projection_gives_one_activation_or_two() -> None:
    x = torch.randn(2, 8, 5, 5)
    end = Projection(End(8, 6))
    features, output = end(x)
    assert features is output
    assert output.shape == (2, 6, 5, 5)
    assert output.min() >= 0
    linear = Projection(End(8, 6), "linear")
    features, output = linear(x)
    assert features.min() < 0 <= output.min()
    torch.testing.assert_close(features, F.conv2d(x, linear.linear.weight, linear.linear.bias))
    torch.testing.assert_close(output, linear.end(features))
    with pytest.raises(ValueError, match="end or linear"):
        Projection(End(8, 6), "both")


def test_separable_convolution_is_depthwise_then_1x1() -> None:
    layer = conv_norm_act(8, 4, 3, dilation=2, separable=True)
    shapes = [tuple(p.shape) for p in layer.parameters() if p.dim() == 4]
    assert shapes == [(8, 1, 3, 3), (4, 8, 1, 1)]
    assert layer(torch.randn(2, 8, 9, 7)).shape == (2, 4, 9, 7)
