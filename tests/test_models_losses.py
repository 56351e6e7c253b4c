"""Cross-entropy against a sum written out, and at its edges."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.entropy import cross_entropy_sum, flat_cross_entropy_sum, pixel_mean
from models.losses.cross_entropy import CrossEntropy
from models.segmenter import Output


def test_mean_over_the_labelled_pixels_at_the_labels_size() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 10))
    labels[0, :3] = 255
    for align_corners in (False, True):
        large = F.interpolate(logits, (8, 10), mode="bilinear", align_corners=align_corners)
        picked = [
            math.log(large[b, :, y, x].double().exp().sum()) - large[b, labels[b, y, x], y, x].item()
            for b in range(2) for y in range(8) for x in range(10) if labels[b, y, x] != 255
        ]  # fmt: skip
        ours = pixel_mean(logits, labels.to(torch.uint8), align_corners)
        assert ours.item() == pytest.approx(sum(picked) / len(picked), rel=1e-6)


def test_terms_are_weighted() -> None:
    labels = torch.randint(0, 3, (2, 8, 8))
    logits, auxiliary, unary = (torch.randn(2, 3, n, n) for n in (8, 4, 2))
    output = Output(logits, logits, {"auxiliary": auxiliary, "unary": unary, "other": unary})
    terms = CrossEntropy(3, 0.4, unary_weight=0.5)(output, labels)
    assert list(terms) == ["cross_entropy", "auxiliary", "unary"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(terms["auxiliary"], 0.4 * pixel_mean(auxiliary, labels))
    torch.testing.assert_close(terms["unary"], 0.5 * pixel_mean(unary, labels))
    with pytest.raises(ValueError, match="unary_weight"):
        CrossEntropy(3, 0.4, unary_weight=-1)


def test_nothing_labelled_is_zero_with_a_gradient_of_zeros() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_mean(logits, torch.full((2, 8, 8), 255))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert gradient.abs().max() == 0


def test_the_deterministic_form_is_the_same_sum() -> None:
    logits, labels = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True), torch.randint(0, 5, (2, 6, 7))
    labels[1] = 255
    forms = cross_entropy_sum(logits, labels), flat_cross_entropy_sum(logits, labels)
    torch.testing.assert_close(*forms)
    torch.testing.assert_close(*(torch.autograd.grad(form, logits)[0] for form in forms))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, labels = torch.randn(1, 4, 8, 8).to(torch.bfloat16), torch.randint(0, 4, (1, 16, 16))
    loss = pixel_mean(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pixel_mean(logits.float(), labels))
