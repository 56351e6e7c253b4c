"""CAR's terms against the released code's arrays and against loops over pixels in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses.car import CAR, TERMS, class_aware_terms, class_centres, labels_at
from models.parts.entropy import pixel_mean
from models.parts.layers import Output

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.mark.parametrize("name", ["car_a", "car_b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_centres_and_gradient_are_the_released_codes(name: str, dtype: torch.dtype) -> None:
    with np.load(REFERENCE / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    features, labels, classes = arrays["features"].to(dtype).requires_grad_(), arrays["labels"], int(arrays["num_classes"])
    terms = class_aware_terms(features, labels, classes)
    assert tuple(terms) == TERMS
    for key, value in terms.items():
        assert value.dtype == dtype
        assert value.item() == pytest.approx(arrays[key].item(), rel=2e-6)
    (gradient,) = torch.autograd.grad(sum(terms.values()), features)
    assert (gradient - arrays["grad_sum"]).abs().max() <= 2e-6 * arrays["grad_sum"].abs().max()
    own = labels.flatten()[:, None] == torch.arange(classes)
    centres = class_centres(features.detach().movedim(1, -1).flatten(0, 2), own)
    torch.testing.assert_close(centres.float(), arrays["centers"], rtol=1e-5, atol=1e-6)


def literal(features: Tensor, labels: Tensor, classes: int, e0: float, e1: float, paper: bool, ignore: int = 255) -> dict[str, Tensor]:
    """Pixel by pixel and class by class; labels are of the features' size."""
    batch, channels, height, width = features.shape
    scale = math.sqrt(channels)
    pixels = [(features[b, :, y, x], int(labels[b, y, x])) for b in range(batch) for y in range(height) for x in range(width)]
    members = [[z for z, label in pixels if label == c != ignore] for c in range(classes)]
    centres = [sum(own) / len(own) if own else torch.zeros(channels, dtype=features.dtype) for own in members]
    fixed = [centre.detach() for centre in centres]

    def others(logits: list[Tensor], own: int, epsilon: float) -> Tensor:
        shares = torch.stack(logits).softmax(0)
        total = sum((torch.relu(shares[c] - epsilon / (classes - 1)) for c in range(classes) if c != own), shares.new_zeros(()))
        return total.clamp(1e-7, 1 - 1e-7)

    def f_mse(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return stacked.square().mean() if paper else stacked.mean().square()

    intra, c2p = [], []
    for z, label in pixels:
        known = 0 <= label < classes and label != ignore
        intra.append((fixed[label] - z).abs() if known else torch.zeros_like(z))
        logits = [(fixed[c] @ fixed[c] if known and c == label else z @ fixed[c]) / (1 if paper else scale) for c in range(classes)]
        c2p.append(others(logits, label if known else -1, e1))
    c2c = [others([centres[c] @ fixed[k] / scale for k in range(classes)], c, e0) for c in range(classes)]
    return {"intra_c2p": f_mse(intra).clamp(min=1e-5), "inter_c2c": f_mse(c2c), "inter_c2p": f_mse(c2p)}


@pytest.mark.parametrize(
    ("classes", "ignore", "epsilons", "form"),
    [(4, 255, (0.5, 0.25), "released"), (4, 255, (0.1, 0.6), "paper"), (2, 0, (0.0, 0.0), "released"), (7, -1, (1.0, 0.9), "paper")],
)
def test_the_terms_and_each_ones_gradient_equal_the_loop_over_pixels(
    classes: int, ignore: int, epsilons: tuple[float, float], form: Any
) -> None:
    torch.manual_seed(0)
    features = (2 * torch.randn(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, min(classes, 5), (2, 4, 5))  # of seven classes two are absent
    labels[0, 0, :3], labels[1, 2, 2] = ignore, 200  # 200: an id that is no class
    ours = class_aware_terms(
        features, labels, classes, ignore_index=ignore, epsilon_c2c=epsilons[0], epsilon_c2p=epsilons[1], form=form
    )  # fmt: skip
    expected = literal(features, labels, classes, *epsilons, form == "paper", ignore)
    for name in TERMS:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-12, atol=1e-14)
        gradients = (torch.autograd.grad(terms[name], features, retain_graph=True)[0] for terms in (ours, expected))
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)
    gradient = torch.autograd.grad(sum(ours.values()), features)[0]
    assert gradient.abs().max() > 1e-3


def test_labels_come_at_any_size_by_their_corners() -> None:
    labels = torch.arange(9 * 12).view(1, 9, 12)
    rows, columns = [0, 3, 5, 8], [0, 11]  # round(i 8 / 3), round(i 11)
    assert torch.equal(labels_at(labels, (4, 2)), labels[:, rows][:, :, columns])
    assert torch.equal(labels_at(labels, (1, 12)), labels[:, :1])
    index = labels_at(torch.arange(769)[None, :, None], (97, 1)).flatten()
    assert index.tolist() == [8 * i for i in range(97)]
    features, large = torch.randn(2, 4, 3, 5), torch.randint(0, 3, (2, 17, 40)).to(torch.uint8)
    ours, expected = (class_aware_terms(features, part, 3) for part in (large, large[:, ::8][:, :, [0, 10, 20, 29, 39]]))
    assert ours == expected


@pytest.mark.parametrize("label", [255, 2])
def test_nothing_labelled_or_one_class_alone_is_finite(label: int) -> None:
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    terms = class_aware_terms(features, torch.full((2, 3, 3), label), 3)
    (gradient,) = torch.autograd.grad(sum(terms.values()), features)
    assert gradient.isfinite().all()
    assert all(term.isfinite() for term in terms.values())
    if label == 255:  # every centre is 0: softmax is uniform
        assert terms["intra_c2p"].item() == pytest.approx(1e-5)
        assert terms["inter_c2c"].item() == pytest.approx((2 / 3 - 0.5) ** 2)
        assert terms["inter_c2p"].item() == pytest.approx((1 - 0.375) ** 2)
        assert gradient.abs().max() == 0
    empty = class_aware_terms(torch.zeros(0, 4, 3, 3), torch.zeros(0, 3, 3, dtype=torch.uint8), 3)
    assert all(term.isfinite() for term in empty.values())


def test_terms_are_weighted_and_0_leaves_one_out_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    logits, features, labels = torch.randn(2, 3, 4, 4), torch.randn(2, 8, 4, 4), torch.randint(0, 3, (2, 16, 16))
    output = Output(logits, features, {"auxiliary": logits, "unary": logits})
    terms = CAR(3, 0.4, intra_c2p=2.0, inter_c2c=0.5, epsilon_c2p=0.1, unary_weight=0.25)(output, labels)
    assert list(terms) == ["cross_entropy", "auxiliary", "unary", "intra_c2p", "inter_c2c", "inter_c2p"]
    plain = class_aware_terms(features, labels, 3, epsilon_c2p=0.1)
    for name, weight in zip(TERMS, (2, 0.5, 1), strict=True):
        torch.testing.assert_close(terms[name], weight * plain[name])
    for name, weight in (("cross_entropy", 1), ("auxiliary", 0.4), ("unary", 0.25)):
        torch.testing.assert_close(terms[name], weight * pixel_mean(logits, labels))
    # Not to be called by what is switched off.
    monkeypatch.setattr("models.losses.car.distances", None)
    monkeypatch.setattr("models.losses.car.others_of_pixels", None)
    only = CAR(3, 0.4, intra_c2p=0, inter_c2p=0)(output, labels)
    torch.testing.assert_close(only["inter_c2c"], plain["inter_c2c"])
    assert "intra_c2p" not in only
    monkeypatch.setattr("models.losses.car.class_centres", None)
    assert list(CAR(3, 0.4, intra_c2p=0, inter_c2c=0, inter_c2p=0)(output, labels)) == ["cross_entropy", "auxiliary", "unary"]


def test_sums_are_float32_under_autocast() -> None:
    torch.manual_seed(2)
    features, labels = torch.randn(2, 16, 9, 9).to(torch.bfloat16).requires_grad_(), torch.randint(0, 5, (2, 9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        low = class_aware_terms(features, labels, 5)
    precise = class_aware_terms(features.detach().float(), labels, 5)
    assert low == precise
    assert all(term.dtype == torch.float32 for term in low.values())
    assert torch.autograd.grad(sum(low.values()), features)[0].dtype == torch.bfloat16
    last = features.detach().float().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(class_aware_terms(last, labels, 5), precise)


def test_no_tensor_of_pixels_by_classes_by_channels_or_classes() -> None:
    pixels, channels, classes = 400, 8, 50
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    features = torch.randn(1, channels, 20, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sum(class_aware_terms(features, torch.randint(0, classes, (1, 20, 20)), classes).values()).backward()
    assert largest == pixels * classes


def test_wrong_options_are_refused() -> None:
    wrong: list[tuple[int, dict[str, Any]]] = [
        (1, {}), (3, {"intra_c2p": -1}), (3, {"epsilon_c2c": -0.1}), (3, {"form": "thesis"}), (3, {"unary_weight": -1}),
        (3, {"class_weights": [1.0]}), (3, {"ohem_threshold": 2.0}), (3, {"inter_c2p": float("nan")}), (3, {"epsilon_c2p": float("inf")}),
    ]  # fmt: skip
    for classes, given in wrong:
        with pytest.raises(ValueError, match="loss car: "):
            CAR(classes, 0.0, **given)
    with pytest.raises(ValueError, match="at least 2 classes"):
        class_aware_terms(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2), 1)
