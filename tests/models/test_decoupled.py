"""Decoupled body and edge supervision, network and losses, against the released code's arrays and pixel-by-pixel loops in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from models.heads.decoupled import BodyEdge, Decoupled, sample_by_rows, warp
from models.losses.body_edge import (
    BodyEdgeLoss,
    balanced_edge_loss,
    edge_cross_entropy,
    edge_labels,
    ohem_cross_entropy,
    relaxed_cross_entropy,
    relaxed_labels,
)
from models.parts.entropy import pixel_mean
from models.parts.layers import Output, resize

REFERENCE = Path(__file__).parents[1] / "reference"


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_the_released_codes(dtype: torch.dtype) -> None:
    given = arrays("decouple_loss_a")
    labels, classes = given["labels"], int(given["num_classes"])
    logits, body, probability = (given[key].to(dtype) for key in ("segmentation_logits", "body_logits", "edge_probability"))
    relaxed, edges = relaxed_labels(labels, classes), edge_labels(labels, classes)
    assert relaxed.dtype == edges.dtype == torch.bool
    assert torch.equal(relaxed, given["relaxed_labels"].bool())
    assert torch.equal(edges, given["edge_labels"].bool())
    for ours, key in (
        (ohem_cross_entropy(logits, labels, min_kept=300), "ohem"),
        (relaxed_cross_entropy(body, relaxed), "relaxed_body"),
        (balanced_edge_loss(probability, edges), "edge_bce"),
        (edge_cross_entropy(logits, labels, probability, min_kept=150), "edge_ohem"),
    ):
        assert ours.dtype == dtype
        assert ours.item() == pytest.approx(given[key].item(), rel=1e-6), key


def test_body_and_edge_are_the_released_codes() -> None:
    given = arrays("decouple_flow_a")
    module = BodyEdge(given["features"].shape[1]).eval()
    state = {key[2:].replace("flow_make", "flow"): value for key, value in given.items() if key.startswith("w.")}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    for ours, name in zip(module(given["features"]), ("body", "edge"), strict=True):
        torch.testing.assert_close(ours, given[name], rtol=1e-5, atol=1e-5)


def window_of(labels: Tensor, classes: int, y: int, x: int, window: int) -> set[int]:
    height, width = labels.shape
    places = [(y + dy, x + dx) for dy in range(-window, window + 1) for dx in range(-window, window + 1)]
    inside = [int(labels[p]) if 0 <= p[0] < height and 0 <= p[1] < width else classes for p in places]
    return {label if 0 <= label < classes else classes for label in inside}


def blobs(seed: int, batch: int = 2, classes: int = 4) -> Tensor:
    """Label maps with areas and stripes that are ignored, or no class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (batch, 3, 4), generator=draw).repeat_interleave(4, 1).repeat_interleave(3, 2)[:, :11]
    labels[0, :5, 2:7], labels[-1, 3], labels[-1, :, 7] = 255, 255, 90
    return labels


@pytest.mark.parametrize("window", [0, 1, 2])
def test_relaxed_labels_and_loss_equal_loops(window: int) -> None:
    labels, classes = blobs(0), 4
    relaxed = relaxed_labels(labels.to(torch.uint8), classes, window)
    assert relaxed.shape == (2, 5, 11, 12)
    logits = torch.randn(2, classes, 11, 12, dtype=torch.float64, requires_grad=True)
    means = []
    for b in range(2):
        shares, counts, pixels = logits[b].softmax(0), [0.0] * (classes + 1), []
        for y in range(11):
            for x in range(12):
                found = window_of(labels[b], classes, y, x, window)
                assert set(relaxed[b, :, y, x].nonzero()[:, 0].tolist()) == found
                counts = [count + (c in found) for c, count in enumerate(counts)]
                if own := sorted(found - {classes}):
                    pixels.append((shares[own, y, x].sum(), own))
        weights = [2 - count / sum(counts) for count in counts]
        total = sum(-share.log() * sum(weights[c] for c in own) / len(own) for share, own in pixels)
        means.append(total / (len(pixels) + 1))
    ours, expected = relaxed_cross_entropy(logits, relaxed), sum(means) / 2
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(form, logits)[0] for form in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    assert gradients[0].abs().max() > 1e-4


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
def test_edges_are_those_of_distance_transforms(radius: int) -> None:
    classes = 4
    for labels in (blobs(1), blobs(2, 1), torch.full((1, 7, 9), 3), torch.full((1, 6, 6), 255), torch.randint(0, 4, (1, 1, 9))):
        expected = torch.zeros(len(labels), 1, *labels.shape[1:], dtype=torch.bool)
        for b in range(len(labels)):
            for c in range(classes):
                mask = np.pad(labels[b].numpy() == c, 1)
                if mask.any():  # an absent class has no outline
                    distance = distance_transform_edt(mask) + distance_transform_edt(~mask)
                    expected[b, 0] |= torch.from_numpy(distance[1:-1, 1:-1] <= radius)
        assert torch.equal(edge_labels(labels.to(torch.uint8), classes, radius), expected)
    assert not edge_labels(torch.full((1, 6, 6), 255), classes, radius).any()
    inner = edge_labels(torch.zeros(1, 20, 20, dtype=torch.long), classes, radius)[0, 0, radius:-radius, radius:-radius]
    assert not inner.any()


def test_the_edge_loss_is_balanced_over_the_batch() -> None:
    torch.manual_seed(3)
    logits, edges = torch.randn(3, 1, 5, 6, dtype=torch.float64, requires_grad=True), torch.rand(3, 1, 5, 6) < 0.2
    edges[2] = False
    positive, count, terms = int(edges.sum()), edges.numel(), []
    for logit, edge in zip(logits.flatten(), edges.flatten().tolist(), strict=True):
        share = 1 / (1 + (-logit).exp())
        terms.append(-share.log() * (count - positive) / count if edge else -(1 - share).log() * positive / count)
    ours, expected = balanced_edge_loss(logits, edges), sum(terms) / count
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(form, logits)[0] for form in (ours, expected)), rtol=1e-10, atol=1e-15)
    for number in (torch.uint8, torch.float32):
        assert balanced_edge_loss(logits, edges.to(number)) == ours
    parts = sum(balanced_edge_loss(logits[i : i + 1], edges[i : i + 1]) for i in range(3)) / 3
    assert abs(parts - ours) > 1e-3


def test_edge_cross_entropy_sees_the_edges_alone() -> None:
    torch.manual_seed(4)
    labels = blobs(3)
    logits = (2 * torch.randn(2, 4, 11, 12, dtype=torch.float64)).requires_grad_()
    labels[labels == 90] = 255
    probability = torch.rand(2, 1, 11, 12, dtype=torch.float64).requires_grad_()
    restricted = labels.clone()
    restricted[probability[:, 0] <= 0.6] = 255
    ours = edge_cross_entropy(logits, labels, probability, edge_threshold=0.6, min_kept=9)
    torch.testing.assert_close(ours, ohem_cross_entropy(logits, restricted, min_kept=9))
    assert torch.autograd.grad(ours, [logits, probability], allow_unused=True)[1] is None
    none = edge_cross_entropy(logits, labels, torch.full_like(probability, 0.8), min_kept=9)  # not exceeded
    assert none == 0
    assert torch.autograd.grad(none, logits)[0].abs().max() == 0


Losses = dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]
LOSSES: Losses = {
    "ohem": lambda logits, edge, labels: ohem_cross_entropy(logits, labels, min_kept=20),
    "relaxed": lambda logits, edge, labels: relaxed_cross_entropy(logits, relaxed_labels(labels, 4)),
    "edge_cross_entropy": lambda logits, edge, labels: edge_cross_entropy(logits, labels, edge.sigmoid(), min_kept=10),
    "balanced": lambda logits, edge, labels: balanced_edge_loss(edge, edge_labels(labels, 4)),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_batch_of_two_is_the_mean_of_two_batches_of_one(name: str) -> None:
    torch.manual_seed(5)
    logits, edge, labels = torch.randn(2, 4, 11, 12), torch.randn(2, 1, 11, 12) + 2, blobs(4)
    labels[labels == 90] = 255
    labels[1] = labels[1].where(labels[1] == 255, 2)  # another share of edges
    both = LOSSES[name](logits, edge, labels)
    one_by_one = sum(LOSSES[name](logits[i : i + 1], edge[i : i + 1], labels[i : i + 1]) for i in range(2)) / 2
    assert (abs(both - one_by_one) <= 1e-6 * both) == (name != "balanced")


@pytest.mark.parametrize("label", [255, 2])
def test_a_crop_without_labels_or_without_edges_is_finite(label: int) -> None:
    torch.manual_seed(6)
    labels = torch.full((2, 11, 12), label)
    logits, body = (torch.randn(2, 4, 6, 6, requires_grad=True) for _ in range(2))
    edge = torch.full((2, 1, 6, 6), -5.0, requires_grad=True)
    terms = BodyEdgeLoss(4, 0.4)(Output(logits, logits, {"body": body, "edge": edge, "auxiliary": logits}, True), labels)
    assert list(terms) == ["cross_entropy", "body", "edge", "edge_attention", "auxiliary"]
    assert all(term.isfinite() for term in terms.values())
    gradients = torch.autograd.grad(sum(terms.values()), [logits, body, edge])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert terms["edge_attention"] == 0
    if label == 255:
        assert all(term == 0 for term in terms.values())
        assert all(gradient.abs().max() == 0 for gradient in gradients)
    halves = LOSSES["ohem"](torch.randn(2, 4, 4, 4), edge, torch.stack([torch.full((4, 4), 255), torch.ones(4, 4).long()]))
    assert halves.isfinite()


def test_the_loss_is_its_functions_at_the_labels_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    labels = blobs(5)
    labels[labels == 90] = 255
    logits, body, edge = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 3, 3), torch.randn(2, 1, 6, 6)
    output = Output(logits, logits, {"body": body, "edge": edge, "auxiliary": body, "unary": logits}, True)
    options = {"threshold": 0.4, "min_kept": 30, "edge_min_kept": 8, "edge_threshold": 0.6, "edge_radius": 1, "unary_weight": 0.5}
    weights = {"body_weight": 2.0, "edge_weight": 25.0, "edge_attention_weight": 0.25}
    terms = BodyEdgeLoss(4, 0.4, **options, **weights)(output, labels.to(torch.uint8))
    final, large_body, large_edge = (resize(part, (11, 12), align_corners=True) for part in (logits, body, edge))
    expected = {
        "cross_entropy": ohem_cross_entropy(final, labels, threshold=0.4, min_kept=30),
        "body": 2 * relaxed_cross_entropy(large_body, relaxed_labels(labels, 4)),
        "edge": 25 * balanced_edge_loss(large_edge, edge_labels(labels, 4, 1)),
        "edge_attention": 0.25 * edge_cross_entropy(
            final, labels, large_edge.sigmoid(), edge_threshold=0.6, min_kept=8, threshold=0.4
        ),
        "auxiliary": 0.4 * pixel_mean(body, labels, True),
        "unary": 0.5 * pixel_mean(logits, labels, True),
    }  # fmt: skip
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
        assert value > 0
    low = output._replace(
        logits_BKhw=logits.to(torch.bfloat16), extras={key: part.to(torch.bfloat16) for key, part in output.extras.items()}
    )
    assert all(term.dtype == torch.float32 for term in BodyEdgeLoss(4, 0.4)(low, labels).values())
    with torch.autocast("cpu", torch.bfloat16):
        assert BodyEdgeLoss(4, 0.4, **options, **weights)(output, labels) == terms
    for unused in ("relaxed_labels", "edge_labels"):
        monkeypatch.setattr(f"models.losses.body_edge.{unused}", None)
    off = BodyEdgeLoss(4, 0.4, body_weight=0, edge_weight=0, edge_attention_weight=0)
    assert list(off(output, labels)) == ["cross_entropy", "auxiliary", "unary"]


def test_warping_takes_pixels_from_where_the_flow_points() -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    flow = torch.zeros(2, 2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(warp(x, flow), x)
    # One pixel to the right is 2 / (W - 1) of the map's breadth, of which a flow of W is 1.
    flow[:, 0] = 2 * 7 / 6
    torch.testing.assert_close(warp(x, flow)[..., :-1], x[..., 1:])
    assert warp(x, flow)[..., -1].abs().max() < 1e-12
    flow[:, 0], flow[:, 1] = 0, -0.5 * 2 * 5 / 4
    torch.testing.assert_close(warp(x, flow)[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2)


@pytest.mark.parametrize("size", [(5, 7), (1, 4)])
def test_the_deterministic_sampling_is_grid_sample(size: tuple[int, int]) -> None:
    torch.manual_seed(8)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    grid = (2.6 * torch.rand(2, 4, 6, 2, dtype=torch.float64) - 1.3).requires_grad_()
    with torch.no_grad():  # whole places, where left and right derivatives differ
        grid[0, 0] = torch.tensor([0.0, 0.0])
    forms = [sample_by_rows(x, grid), F.grid_sample(x, grid, align_corners=True)]
    torch.testing.assert_close(*forms)
    cotangent = torch.randn_like(forms[0])
    for pair in zip(*(torch.autograd.grad((form * cotangent).sum(), [x, grid]) for form in forms), strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 9), (6, 7), (7, 7), (8, 13)])
def test_body_and_edge_add_up_on_maps_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(9)
    module = BodyEdge(4).train(size == (8, 13))
    torch.nn.init.normal_(module.flow.weight)
    features = torch.randn(2, 4, *size, requires_grad=True)
    body, edge = module(features)
    assert body.shape == edge.shape == features.shape
    torch.testing.assert_close(body + edge, features)
    (body.square().sum()).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(part.isfinite().all() for part in module.eval()(features.detach().to(torch.bfloat16)))


def test_the_flow_is_float32_under_autocast() -> None:
    torch.manual_seed(10)
    module = BodyEdge(4).eval()
    features = torch.randn(1, 4, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        body, edge = module(features)
    assert body.dtype == edge.dtype == torch.float32
    # A grid in half precision would be off by up to 40 / 2 / 256 of a pixel; here the flow alone is rounded.
    expected = module(features)[0]
    assert (body - expected).abs().max() < 0.02 * expected.abs().max()


CHANNELS, STRIDES = (8, 12, 16, 24), (2, 4, 8, 8)


def stages(batch: int = 2, size: tuple[int, int] = (96, 120)) -> list[Tensor]:
    return [torch.randn(batch, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(CHANNELS, STRIDES, strict=True)]


@pytest.mark.parametrize("context", ["aspp", "fcn", "psp"])
def test_the_head_gives_features_body_and_edge(context: Any) -> None:
    torch.manual_seed(11)
    head = Decoupled(CHANNELS, STRIDES, 5, width=8, rates=[1, 2], low_level=4, edge_width=6, context=context)
    assert (head.channels, head.stride, head.align_corners, head.end[:3]) == (8, 4, True, (8, 8, 3))
    assert head.smallest_batch == (1 if context == "fcn" else 2)
    given = stages(size=(97, 118))
    features, extras = head(given)
    assert features.shape == (2, 8, 25, 30)
    assert {name: tuple(part.shape) for name, part in extras.items()} == {"body": (2, 5, 13, 15), "edge": (2, 1, 25, 30)}
    (features.sum() + sum(part.square().sum() for part in extras.values())).backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []
    head.eval()
    assert head(given)[1].keys() == extras.keys()  # a frozen head in training
    with torch.no_grad():
        assert head(given)[1] == {}


def test_the_head_is_put_together_as_published() -> None:
    torch.manual_seed(12)
    head = Decoupled(CHANNELS, STRIDES, 5, width=8, rates=[1, 2], low_level=4).eval()
    given = stages(1)
    features, extras = head(given)
    context = head.context(given[-1])
    body, rest = head.body_edge(context)
    up = lambda x: F.interpolate(x, (24, 30), mode="bilinear", align_corners=True)  # noqa: E731
    edge = head.edge(torch.cat([up(rest), head.low_level(given[1])], 1))
    torch.testing.assert_close(features, head.join(torch.cat([up(context), edge + up(body)], 1)))
    torch.testing.assert_close(extras["body"], head.body_classifier(body))
    torch.testing.assert_close(extras["edge"], head.edge_classifier(edge))
    # Without norm and activation where the released network has none.
    assert context.min() < 0
    assert edge.min() < 0


def test_wrong_options_are_refused() -> None:
    for wrong in ({"width": 0}, {"rates": [2, 0]}, {"low_level": 0}, {"edge_width": 0}, {"context": "none"}):
        with pytest.raises(ValueError, match="head decoupled: "):
            Decoupled(CHANNELS, STRIDES, 5, **wrong)
    with pytest.raises(ValueError, match="head decoupled: its edges need a stage of stride 4"):
        Decoupled((8, 8), (8, 16), 5)
    for options in (
        {"edge_weight": -1},
        {"body_weight": float("nan")},
        {"threshold": 1.2},
        {"edge_threshold": -0.1},
        {"min_kept": -1},
        {"edge_radius": 0},
    ):
        with pytest.raises(ValueError, match="loss body_edge: "):
            BodyEdgeLoss(4, 0.4, **options)
    for shape in ((1, 4, 5, 6), (1, 6, 5, 6), (2, 5, 5, 6), (1, 5, 6, 5)):
        with pytest.raises(ValueError, match=r"relaxed labels .* do not fit logits"):
            relaxed_cross_entropy(torch.zeros(1, 4, 5, 6), torch.zeros(shape, dtype=torch.bool))
    assert BodyEdgeLoss(4, 0.4).needs == Decoupled.extras


@pytest.mark.gpu
def test_training_is_deterministic_on_a_gpu() -> None:
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(13)
            head = Decoupled(CHANNELS, STRIDES, 5, width=8, rates=[1, 2], low_level=4).cuda()
            given = [stage.cuda().requires_grad_() for stage in stages(size=(24, 40))]
            features, extras = head(given)
            labels = torch.randint(0, 5, (2, 24, 40)).cuda()
            logits = features[:, :5]
            terms = BodyEdgeLoss(5, 0.0, min_kept=100, edge_min_kept=50, edge_threshold=0.4)(Output(logits, features, extras, True), labels)
            found.append(torch.autograd.grad(sum(terms.values()), given, allow_unused=True))
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second in zip(*found, strict=True):
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    assert math.isfinite(sum(term.item() for term in terms.values()))
