"""Learning rates by part and step, and what freezing keeps."""

import itertools

import pytest
import torch
from torch import nn

from models.crf.conv import Conv
from models.crf.mean_field import MeanField
from pipeline.settings.schema import Train
from pipeline.training import optim


def train(**changes: object) -> Train:
    values = {"iterations": 100, "batch_size": 1, "seeds": (0,), "optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0}
    return Train(**{**values, **changes})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.crf = nn.ModuleDict({"inner": nn.Conv2d(4, 4, 1), "classifier": nn.Conv2d(4, 2, 1)})
        self.crfs = nn.Conv2d(2, 2, 1)


def test_the_longest_part_wins_and_a_prefix_ends_at_a_dot() -> None:
    model = Net()
    groups = optim.parameter_groups(model, {"crf": 10.0, "crf.classifier": 100.0, "backbone": 0.0})
    factors = {id(parameter): group["factor"] for group in groups for parameter in group["params"]}
    found = {name: factors[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["crf.inner.weight"] == 10
    assert found["crf.classifier.bias"] == 100
    assert found["backbone.0.weight"] == 0
    assert found["crfs.weight"] == 1


def test_the_decay_ends_at_the_smallest_rate() -> None:
    config = train(lr=0.01, min_lr=0.0001, power=0.9, warmup=0)
    rates = [optim.learning_rate(config, step) for step in (0, config.iterations // 2, config.iterations)]
    assert rates == pytest.approx([0.01, 0.0099 * 0.5**0.9 + 0.0001, 0.0001])


def test_rates_warm_up_and_decay_and_are_multiplied() -> None:
    rates = [optim.learning_rate(train(warmup=9, power=0.9), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5 * (1 - 4 / 100) ** 0.9)
    assert rates[50] == pytest.approx(0.5**0.9)
    assert 0 < rates[99] < 0.02
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    chosen = optim.optimizer(Net(), train(multipliers={"crf": 10.0}))
    optim.set_learning_rate(chosen, 0.5)
    assert sorted(group["lr"] for group in chosen.param_groups) == [0.5, 5.0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_factor_of_ten_makes_the_first_step_ten_times_as_long(name: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 1, bias=False), "b": nn.Linear(3, 1, bias=False)})
    model["b"].load_state_dict(model["a"].state_dict())
    before = model["a"].weight.detach().clone()
    chosen = optim.optimizer(model, train(optimizer=name, multipliers={"b": 10.0}))
    optim.set_learning_rate(chosen, 0.01)
    x = torch.ones(1, 3)
    (model["a"](x) + model["b"](x)).sum().backward()
    chosen.step()
    torch.testing.assert_close(model["b"].weight - before, 10 * (model["a"].weight - before), rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_in_eval_mode_and_out_of_the_optimizer() -> None:
    model = Net()
    optim.freeze(model, ["backbone"])
    optim.train_mode(model, ["backbone"])
    assert model.training
    assert model.crf.training
    assert not model.backbone[1].training
    trained = {id(parameter) for group in optim.parameter_groups(model, {}) for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in model.backbone.parameters()}
    optim.freeze(model, ["crf", "crfs"])
    with pytest.raises(ValueError, match="nothing to train"):
        optim.optimizer(model, train())


def test_parts_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"'hed' is no part .* parts are backbone, crf, crfs"):
        optim.check_parts(Net(), ["crf.classifier", "hed"], "multipliers")


def test_kernel_weights_and_compatibility_may_learn_at_rates_of_their_own() -> None:
    model = nn.ModuleDict({"crf": MeanField(4, 3)})
    rates = {"crf.field.spatial_weight": 1e4, "crf.field.bilateral_weight": 1e4, "crf.field.compatibility": 1e3}  # CRF-RNN's
    optim.check_parts(model, rates, "multipliers", parameters=True)
    with pytest.raises(ValueError, match="is no part"):  # what is frozen is a module
        optim.check_parts(model, rates, "freeze")
    groups = optim.parameter_groups(model, rates)
    found = {id(parameter): group["factor"] for group in groups for parameter in group["params"]}
    assert {name: found[id(parameter)] for name, parameter in model.named_parameters()} == rates | {
        "crf.classifier.weight": 1.0, "crf.classifier.bias": 1.0,
    }  # fmt: skip


def test_a_fields_parameters_do_not_decay() -> None:
    mean_field, conv = MeanField(4, 3, learn_bandwidths=True), Conv(4, 3, theta_alpha=80.0, compatibility=True, position=(5, 6))
    for crf in (mean_field, conv):
        model = nn.ModuleDict({"crf": crf})
        groups = optim.optimizer(model, train(weight_decay=0.1, multipliers={"crf.field": 10.0})).param_groups
        found = {id(parameter): (group["weight_decay"], group["factor"]) for group in groups for parameter in group["params"]}
        assert {name: found[id(parameter)] for name, parameter in model.named_parameters()} == {
            name: (0.1, 1.0) if name.startswith("crf.classifier.") else (0.0, 10.0) for name, _ in model.named_parameters()
        }
    assert {"spatial_weight", "bilateral_weight", "compatibility", "theta_alpha"} <= set(mean_field.field)
    assert {"theta_alpha", "theta_beta", "theta_gamma", "appearance", "weight", "compatibility", "position"} <= set(conv.field)
