"""Any head with any crf and any loss that its outputs allow trains, and on two processes as on one."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from makers.networks import CLASSES, batch, settings
from makers.ranks import run_on_ranks
from torch import Tensor, nn

from models.crf import CRFS
from models.heads import HEADS
from models.losses import LOSSES
from models.parts.batch_norm import synchronise_batch_norm
from models.parts.reductions import all_sum, world_size
from models.segmenter import build, build_loss

# Small sizes; a part without an entry is built as it is by default.
HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"width": 8, "key_width": 4},
    "caa": {"width": 8, "key_width": 4, "gate_width": 4},
    "deeplab": {"width": 8, "rates": [1, 2], "low_level": 4},
    "decoupled": {"width": 8, "rates": [1, 2], "low_level": 4},
    "fcn": {"width": 8},
    "ksac": {"width": 8, "rates": [1, 2]},
    "psp": {"width": 8},
    "segformer": {"width": 8},
    "uper": {"width": 8},
}
CRF_OPTIONS: dict[str, dict[str, Any]] = {
    "conv": {"filter_size": 3, "iterations": 2, "stride": 4},
    "embedded": {"embedding": 4},
    "mean_field": {"iterations": 2},
    "unary": {},
}
LOSS_OPTIONS: dict[str, dict[str, Any]] = {"body_edge": {"min_kept": 200, "edge_min_kept": 100}}


def part(name: str, given: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(name=name, options=given)


def config(head: str, crf: str, loss: str) -> SimpleNamespace:
    return settings(
        head=part(head, HEAD_OPTIONS.get(head, {})),
        crf=part(crf, CRF_OPTIONS.get(crf, {}) | {"dropout": 0.0}),
        loss=part(loss, LOSS_OPTIONS.get(loss, {})),
        projection="linear" if loss == "car" else "end",
        backbone=SimpleNamespace(name="test_resnet", output_stride=16, pretrained=False),
    )


def allowed() -> list[tuple[str, str, str]]:
    """What the parts' own words allow: a loss needs extras that head or crf give."""
    found = []
    for head in HEADS:
        for crf in CRFS:
            with torch.device("meta"):
                network = build(config(head, crf, "cross_entropy"), CLASSES)
            given = {*network.head.extras, *network.crf.extras}
            found += [(head, crf, loss) for loss in LOSSES if set(build_loss(config(head, crf, loss), CLASSES).needs) <= given]
    return found


COMBINATIONS = allowed()


def train(head: str, crf: str, loss: str) -> tuple[dict[str, Tensor | None], dict[str, float], float, float]:
    """(gradients, terms, the loss before a small step along them, the loss after it) on this rank's part of the batch."""
    torch.manual_seed(0)
    chosen = config(head, crf, loss)
    network = build(chosen, CLASSES).double().train()
    model: nn.Module = network
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(synchronise_batch_norm(network), find_unused_parameters=True)
    size = 4 // world_size()
    start = dist.get_rank() * size if dist.is_initialized() else 0
    images, labels, superpixels = (tensor[start : start + size] for tensor in batch())
    measure = build_loss(chosen, CLASSES)

    def terms() -> dict[str, Tensor]:
        return measure(model(images, superpixels), labels)

    def shared(values: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(all_sum(value.detach()) / world_size()) for name, value in values.items()}

    before = terms()
    sum(before.values()).backward()
    everything = dict(network.named_parameters())
    gradients = {name: parameter.grad for name, parameter in everything.items()}
    with torch.no_grad():
        length = torch.stack([gradient.square().sum() for gradient in gradients.values() if gradient is not None]).sum().sqrt()
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad / length
        after = shared(terms())
    # Of the backbone its first weights will do: all others' gradients went into theirs.
    first = next(iter(everything))
    gradients = {name: value for name, value in gradients.items() if name == first or not name.startswith("backbone.")}
    return gradients, shared(before), sum(shared(before).values()), sum(after.values())


def train_all() -> dict[tuple[str, str, str], Any]:
    return {combination: train(*combination)[:2] for combination in COMBINATIONS}


@cache
def on_two_processes() -> list[dict[tuple[str, str, str], Any]]:
    """All of them in one pair of processes."""
    return run_on_ranks(train_all, 2, timeout=400)


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_combination_trains_and_does_so_on_any_number_of_processes(combination: tuple[str, str, str]) -> None:
    gradients, terms, before, after = train(*combination)
    assert after < before
    assert all(value == value and abs(value) < 1e6 for value in terms.values())
    for shared_gradients, shared_terms in (rank[combination] for rank in on_two_processes()):
        assert shared_terms == pytest.approx(terms, rel=1e-9)
        for name, expected in gradients.items():
            if expected is None:
                assert shared_gradients[name] is None or not shared_gradients[name].any(), name
            else:
                error = (shared_gradients[name] - expected).abs().max()
                assert error <= 1e-9 * expected.abs().max().clamp(min=1e-6), (name, error)
