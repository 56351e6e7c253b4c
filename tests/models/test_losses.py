"""Cross-entropy against a sum written out, and at its edges."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.cross_entropy import CrossEntropy
from models.parts.entropy import cross_entropy_map, cross_entropy_sum, flat, flat_cross_entropy_sum, ohem_cross_entropy, pixel_mean
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


def hard(logits: Tensor, labels: Tensor, threshold: float, min_kept: int, weights: list[float], ignore: int = 255) -> Tensor:
    """OHEM pixel by pixel; images without labelled pixels are a 0."""
    means = []
    for image, ids in zip(logits, labels, strict=True):
        shares = image.softmax(0)
        found = [(shares[ids[y, x], y, x], weights[ids[y, x]]) for y, x in (ids != ignore).nonzero().tolist()]
        ranked = sorted(share.item() for share, _ in found)
        limit = math.inf if len(found) < min_kept else max(threshold, ranked[min_kept - 1] if min_kept else 0)
        kept = [(-share.log() * weight, weight) for share, weight in found if share.item() <= limit]
        means.append(sum(value for value, _ in kept) / sum(weight for _, weight in kept) if kept else logits.sum() * 0)
    return sum(means) / len(means)


@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.3, 5), (0.3, 0), (0.0, 0), (0.0, 7), (0.9, 12), (0.2, 18), (0.2, 24), (0.1, 25), (0.1, 1000), (1.0, 3)]
)
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_hard_pixels_are_those_of_a_sorted_list(threshold: float, min_kept: int, weights: list[float] | None) -> None:
    torch.manual_seed(0)
    logits = (2 * torch.randn(4, 3, 4, 6, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 3, (4, 4, 6))
    labels[1, 1:] = labels[2] = 255
    options = {"threshold": threshold, "min_kept": min_kept, "class_weights": weights}
    ours = ohem_cross_entropy(logits, labels.to(torch.uint8), **options)
    expected = hard(logits, labels, threshold, min_kept, weights or [1.0] * 3)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(form, logits)[0] for form in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    if (threshold, min_kept) != (0.0, 0):
        assert gradients[0].abs().max() > 0
    # A batch is the mean of its images.
    parts = [ohem_cross_entropy(logits[i : i + 1], labels[i : i + 1], **options) for i in range(4)]
    torch.testing.assert_close(ours, sum(parts) / 4)


def test_a_probability_on_the_threshold_is_kept_and_any_id_can_be_ignored() -> None:
    logits, labels = torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [-1, 3]]])
    logits[0, 0, 0, 0] = 9.0
    kept = ohem_cross_entropy(logits, labels, threshold=0.25, min_kept=0, ignore_index=-1)
    assert kept.item() == pytest.approx(math.log(4))
    assert ohem_cross_entropy(logits.to(torch.bfloat16), labels, min_kept=0, threshold=0.25, ignore_index=-1) == kept
    everything = ohem_cross_entropy(logits, labels, threshold=0.25, min_kept=3, ignore_index=-1)
    expected = F.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(everything, expected)


def test_the_deterministic_map_is_the_same() -> None:
    logits, labels = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randint(0, 5, (2, 3, 4))
    labels[1, 0] = 255
    rows, ids = flat(logits, labels)
    expected = F.cross_entropy(rows, ids, ignore_index=255, reduction="none").view(2, 3, 4)
    torch.testing.assert_close(cross_entropy_map(logits, labels), expected)
    weights = torch.tensor([1.0, 2, 3, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy_sum(logits, labels, weights), flat_cross_entropy_sum(logits, labels, weights))


def test_classes_are_weighted_as_in_torch() -> None:
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[0, :3] = 255
    logits = torch.randn(2, 3, 8, 8)
    for weights in ([1.0, 2.5, 0.0], [1e-9, 3e-9, 2e-9]):
        output = Output(logits, logits, {"auxiliary": logits, "unary": logits})
        terms = CrossEntropy(3, 0.4, class_weights=weights)(output, labels)
        expected = F.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255)
        for name, weight in (("cross_entropy", 1), ("auxiliary", 0.4), ("unary", 1)):
            torch.testing.assert_close(terms[name], weight * expected)
    only_unweighted = torch.full((2, 8, 8), 2)
    assert pixel_mean(logits, only_unweighted, class_weights=[1.0, 1.0, 0.0]) == 0


def test_hard_pixels_are_of_the_final_logits_alone() -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 16, 16))
    output = Output(logits, logits, {"auxiliary": logits}, align_corners=True)
    terms = CrossEntropy(3, 0.4, ohem_threshold=0.3, ohem_min_kept=50)(output, labels)
    large = F.interpolate(logits, (16, 16), mode="bilinear", align_corners=True)
    torch.testing.assert_close(terms["cross_entropy"], ohem_cross_entropy(large, labels, threshold=0.3, min_kept=50))
    torch.testing.assert_close(terms["auxiliary"], 0.4 * pixel_mean(logits, labels, align_corners=True))
    assert terms["cross_entropy"] > pixel_mean(logits, labels, align_corners=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 values, there are 3 classes"),
        ({"class_weights": [1.0, -2.0, 1.0]}, "must be finite, not negative"),
        ({"class_weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"class_weights": [1.0, math.nan, 0.0]}, "must be finite"),
        ({"ohem_threshold": 1.5}, r"must be null or in \[0, 1\]"),
        ({"unary_weight": math.nan}, "unary_weight must be finite and not negative"),
        ({"ohem_min_kept": -1}, "ohem_min_kept must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"loss cross_entropy: .*{message}"):
        CrossEntropy(3, 0.0, **options)
