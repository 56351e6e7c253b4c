"""Parts of a model, their learning rates, and the schedule as a pure function of the step."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from models.parts.layers import Undecayed
from pipeline.settings.schema import Config, Train


def part_of(path: str, parts: Iterable[str]) -> str | None:
    """The longest of `parts` (module paths) that contains the parameter or module `path`; None where none does."""
    return max((part for part in parts if path == part or path.startswith(part + ".")), key=len, default=None)


def check_parts(model: nn.Module, parts: Collection[str], what: str, *, parameters: bool = False) -> None:
    """Raise ValueError unless every part is a module of the model, or (with `parameters`) one of its parameters."""
    known = {path for path, _ in model.named_modules() if path}
    known |= {path for path, _ in model.named_parameters()} if parameters else set()
    for part in parts:
        if part not in known:
            top = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"{what}: {part!r} is no part of this model; parts are {top} and the module paths within them")


def freeze(model: nn.Module, parts: Collection[str]) -> None:
    """Switch off the gradients of the named parts; `train_mode` keeps them in eval mode."""
    for part in parts:
        model.get_submodule(part).requires_grad_(False)


def train_mode(model: nn.Module, frozen: Collection[str]) -> None:
    """Training mode everywhere but in frozen parts, whose batch norm and dropout stay in eval mode."""
    model.train()
    for part in frozen:
        model.get_submodule(part).eval()


def parameter_groups(model: nn.Module, multipliers: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by their learning-rate factor (`factor` in each group) and by whether they decay."""
    undecayed = {id(parameter) for module in model.modules() if isinstance(module, Undecayed) for parameter in module.parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(path, multipliers)
            groups.setdefault((1.0 if part is None else multipliers[part], id(parameter) not in undecayed), []).append(parameter)
    return [
        {"params": parameters, "factor": factor} if decays else {"params": parameters, "factor": factor, "weight_decay": 0.0}
        for (factor, decays), parameters in groups.items()
    ]


def optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the trainable parameters."""
    groups = parameter_groups(model, train.multipliers)
    if not groups:
        raise ValueError("every part is frozen: there is nothing to train")
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=(train.momentum, 0.999), weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


def trains_the_unary(model: nn.Module) -> bool:
    """Whether anything learns besides the crf's own parameters; its classifier is part of the unary."""
    parameters = model.named_parameters()
    return any(parameter.requires_grad and part_of(path, ("crf", "crf.classifier")) != "crf" for path, parameter in parameters)


def of_the_unary(config: Config, step: int) -> bool:
    """Whether step `step` (from 0) trains the unary alone: the even ones of a finetune that alternates."""
    return config.finetune is not None and config.finetune.alternate and step % 2 == 0


def learning_rate(train: Train, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, times the poly decay (1 - step/iterations)^power from lr to min_lr."""
    ramp = min(1.0, (step + 1) / (train.warmup + 1))
    return ramp * ((train.lr - train.min_lr) * (1 - step / train.iterations) ** train.power + train.min_lr)


def set_learning_rate(chosen: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor."""
    for group in chosen.param_groups:
        group["lr"] = rate * group["factor"]
