"""Batch norm, losses and whole networks on two processes are those of one."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from makers.networks import CLASSES, METHODS, batch, settings
from makers.ranks import run_on_ranks
from torch import Tensor, nn

from models.losses.cross_entropy import CrossEntropy
from models.parts.batch_norm import GlobalBatchNorm2d, synchronise_batch_norm
from models.parts.entropy import pixel_mean
from models.parts.layers import Output
from models.parts.reductions import all_gather, all_sum, share_of_mean, world_size
from models.segmenter import build, build_loss


def gradients(method: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """(gradients, buffers, terms) of one step on this rank's part of the batch."""
    torch.manual_seed(0)
    config = settings(**METHODS[method])
    network = build(config, CLASSES).double().train()
    model = network
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(synchronise_batch_norm(network))
    size = 4 // world_size()
    start = dist.get_rank() * size if dist.is_initialized() else 0
    images, labels, superpixels = (part[start : start + size] for part in batch())
    terms = build_loss(config, CLASSES)(model(images, superpixels), labels)
    sum(terms.values()).backward()
    shares = {name: float(all_sum(term.detach()) / world_size()) for name, term in terms.items()}
    return {name: p.grad for name, p in network.named_parameters()}, dict(network.named_buffers()), shares


@pytest.mark.parametrize("method", list(METHODS))
def test_gradients_of_one_and_two_processes_are_equal(method: str) -> None:
    one = gradients(method)
    for rank in run_on_ranks(gradients, 2, method):
        assert rank[2] == pytest.approx(one[2], rel=1e-12)
        for ours, expected in zip(rank[:2], one[:2], strict=True):
            assert ours.keys() == expected.keys()
            for name, value in expected.items():
                assert value is not None, f"no gradient reaches {name}"
                if value.is_floating_point():
                    error = (ours[name] - value).abs().max()
                    assert error <= 1e-9 * value.abs().max().clamp(min=1e-6), (name, error)
    assert max(gradient.abs().max() for gradient in one[0].values()) > 1e-4


def normalised(state: dict[str, Any], sizes: list[int], fused: bool, training: bool) -> tuple[Tensor, ...]:
    """Output, gradients and running statistics of one norm on this rank's images."""
    norm = synchronise_batch_norm(nn.Sequential(plain_norm(fused)))
    norm.load_state_dict(state)
    assert isinstance(norm[0], GlobalBatchNorm2d)
    norm.train(training)
    start = sum(sizes[: dist.get_rank()])
    x = norm_input()[start : start + sizes[dist.get_rank()]].requires_grad_()
    y = norm(x)
    (y * torch.arange(y.numel()).view_as(y).sin() * (start + 1)).sum().backward()
    weight, bias = (all_sum(parameter.grad) for parameter in (norm[0].weight, norm[0].bias))
    return y.detach(), x.grad, weight, bias, norm[0].running_mean, norm[0].running_var, norm[0].num_batches_tracked


def plain_norm(fused: bool) -> nn.BatchNorm2d:
    from timm.layers import BatchNormAct2d

    return (BatchNormAct2d(3, act_layer=nn.SiLU) if fused else nn.BatchNorm2d(3, momentum=0.2)).double()


def norm_input() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 4, 2, generator=draw, dtype=torch.float64) * 0.01 + 1000


@pytest.mark.parametrize(("fused", "training"), [(False, True), (True, True), (False, False)])
def test_batch_norm_over_unequal_ranks_is_one_processs(fused: bool, training: bool) -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(plain_norm(fused)).train(training)
    nn.init.normal_(reference[0].weight)
    state = copy.deepcopy(reference.state_dict())
    x = norm_input().requires_grad_()
    y = reference(x)
    starts = [0, 3]
    for start, part in zip(starts, y.split([3, 2]), strict=True):
        (part * torch.arange(part.numel()).view_as(part).sin() * (start + 1)).sum().backward(retain_graph=True)
    ranks = run_on_ranks(normalised, 2, state, [3, 2], fused, training)
    for index, whole in ((0, y.detach()), (1, x.grad)):
        torch.testing.assert_close(torch.cat([rank[index] for rank in ranks]), whole, rtol=1e-8, atol=1e-8)
    norm = reference[0]
    for rank in ranks:
        expected = (norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked)
        for ours, value in zip(rank[2:], expected, strict=True):
            torch.testing.assert_close(ours, value, rtol=1e-8, atol=1e-8)


def test_synchronising_keeps_parameters_names_and_mode() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), plain_norm(True).float(), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, momentum=None))
    network[3].eval()
    weight, keys = network[1].weight, list(network.state_dict())
    synchronised = synchronise_batch_norm(copy.deepcopy(network))
    x = torch.randn(4, 2, 3, 3)
    for _ in range(2):
        torch.testing.assert_close(synchronised(x), network(x))
    assert list(synchronised.state_dict()) == keys
    assert synchronised[3].training is False
    for ours, expected in zip(synchronised.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)
    assert synchronise_batch_norm(network)[1].weight is weight
    with pytest.raises(ValueError, match="more than one value per channel"):
        synchronised[1](torch.randn(1, 3, 1, 1))


def test_reductions_without_a_group_are_the_identity() -> None:
    x = torch.randn(3, requires_grad=True)
    assert world_size() == 1
    assert all_sum(x) is x
    assert torch.equal(all_gather(x), x[None])
    assert share_of_mean(x.sum(), torch.tensor(3)).item() == pytest.approx(x.mean().item())


def sums() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).add(10 * dist.get_rank()).requires_grad_()
    total = all_sum(x)
    (total.square().sum() * (dist.get_rank() + 1)).backward()
    nothing = pixel_mean(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255))
    return total.detach(), x.grad, nothing


def test_sums_over_ranks_have_the_gradient_of_the_summed_losses() -> None:
    for total, gradient, nothing in run_on_ranks(sums, 2):
        assert total.tolist() == [12.0, 14.0]
        assert gradient.tolist() == [2 * 12 * (1 + 2), 2 * 14 * (1 + 2)]
        assert nothing == 0


def weighted(ohem_threshold: float | None) -> tuple[Tensor, Tensor]:
    """(the term's mean over the ranks, the gradient that DistributedDataParallel would form) of this rank's part of the batch."""
    size = 4 // world_size()
    start = dist.get_rank() * size if dist.is_initialized() else 0
    labels = batch()[1][start : start + size]
    logits = torch.randn(4, CLASSES, 12, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameter = logits.requires_grad_()
    output = Output(parameter[start : start + size], parameter, {})
    loss = CrossEntropy(CLASSES, 0.0, class_weights=(1.0, 0.5, 3.0), ohem_threshold=ohem_threshold, ohem_min_kept=500)
    term = loss(output, labels)["cross_entropy"]
    term.backward()
    return all_sum(term.detach()) / world_size(), all_sum(parameter.grad) / world_size()


@pytest.mark.parametrize("ohem_threshold", [None, 0.3])
def test_weighted_means_over_unequal_ranks_are_one_processs(ohem_threshold: float | None) -> None:
    expected = weighted(ohem_threshold)
    for rank in run_on_ranks(weighted, 2, ohem_threshold):
        for ours, value in zip(rank, expected, strict=True):
            torch.testing.assert_close(ours, value, rtol=1e-12, atol=1e-18)
