"""One optimizer step: forward, backward, clip, update, average; the same on any number of processes."""

import contextlib
import inspect
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import segmenter
from models.losses import Loss
from models.parts import batch_norm
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Config
from pipeline.training import batches, optim
from pipeline.training.batches import Batch
from pipeline.training.distributed import agree, mean_over_ranks, rank, world
from pipeline.training.parent import inherit

PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1.0  # of the loss in fp16; halved at each overflow from 65536 on, it gets below only where no scale helps


@dataclass
class Training:
    """What a step works on. `network` is the model as it is called: wrapped for several processes, perhaps compiled."""

    config: Config
    device: torch.device
    model: segmenter.Segmenter
    network: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: dict[str, Tensor] | None
    skipped: int = 0  # steps in which fp16 overflowed

    @classmethod
    def start(cls, config: Config, classes: tuple[str, ...], device: torch.device) -> "Training":
        """Build everything as it is before the first step."""
        torch.manual_seed(config.seed)
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses deterministic mode
        torch.use_deterministic_algorithms(config.train.deterministic)
        torch.backends.cudnn.benchmark = not config.train.deterministic
        model = segmenter.build(config, len(classes))
        if config.finetune is not None:
            inherit(config, model)
            optim.freeze(model, config.finetune.freeze)
        model.to(device)
        if device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        network: nn.Module = model
        if world() > 1:
            batch_norm.synchronise_batch_norm(model)  # in place, below the top
        if config.train.compile:
            model.compile()
        if world() > 1:
            network = distributed(model, device)
        return cls(
            config=config,
            device=device,
            model=model,
            network=network,
            loss=segmenter.build_loss(config, len(classes)),
            optimizer=optim.optimizer(model, config.train),
            scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
            averaged=None if config.train.ema is None else copied(model.state_dict()),
        )

    def step(self, batch: Batch, number: int) -> dict[str, float]:
        """One optimizer step on this rank's share of the global batch; returns the loss terms' means over the ranks.

        Raises UserError, before any weight changes, when a rank's loss or gradient is not finite. In fp16 such a step changes
        nothing but the loss's scale, and is an error only when a small scale does not help either.
        """
        config = self.config.train
        optim.train_mode(self.model, self.config.finetune.freeze if self.config.finetune else ())
        reseed(self.config.seed, number)
        optim.set_learning_rate(self.optimizer, optim.learning_rate(config, number))
        self.optimizer.zero_grad(set_to_none=True)
        before = copied(dict(self.model.named_buffers())) if self.scaler.is_enabled() else {}
        parts, unary = split(batch, config.accumulate), optim.of_the_unary(self.config, number)
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            with self.gathering(last=index == len(parts) - 1):
                terms = self.backward(part, len(parts), unary)
            sums = {name: term + sums[name] if name in sums else term for name, term in terms.items()}
        totals = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))  # the one wait for a GPU
        if not self.scaler.is_enabled():
            self.refuse_non_finite(totals, batch.names, number)
        if self.update(batch.names, number):
            self.average(number)
        else:
            self.skip(before, totals, batch.names, number)
        return dict(zip(totals, mean_over_ranks(list(totals.values())), strict=True))

    def gathering(self, last: bool) -> AbstractContextManager[None]:
        """Gradients meet those of the other ranks after the last accumulated part alone."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def backward(self, part: Batch, parts: int, unary: bool) -> dict[str, Tensor]:
        """Forward and backward of one accumulated part; its terms, each divided by the number of parts.

        unary: of the crf's classifier alone. Its field takes no part and its gradients stay None, which the optimizer passes over.
        """
        part = batches.to_device(part, self.device, channels_last=self.device.type == "cuda")
        dtype = PRECISION.get(self.config.train.precision)
        with mendable():
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                terms = self.loss(self.network(part.image, part.superpixels, unary=unary), part.labels)
            terms = {name: term.float() / parts for name, term in terms.items()}
            self.scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        return {name: term.detach() for name, term in terms.items()}

    def refuse_non_finite(self, terms: Mapping[str, float], names: tuple[str, ...], number: int) -> None:
        """Stop all ranks when the loss of one is not finite."""
        bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        self.refuse(f"the loss is not finite on rank {rank()} ({', '.join(bad)})" if bad else None, names, number)

    def refuse(self, fault: str | None, names: tuple[str, ...], number: int) -> None:
        """Stop all ranks with the first fault that one of them has."""
        where = f"{self.config.name}, seed {self.config.seed}, step {number}"
        way = "the last checkpoint is kept; try a smaller train.lr, train.clip or fp32"
        if agreed := agree(fault and f"{where}: {fault} for the images {', '.join(names)}; {way}"):
            raise UserError(agreed)

    def update(self, names: tuple[str, ...], number: int) -> bool:
        """Clip and step; whether the weights have changed, which the scaler of fp16 refuses where a gradient overflowed."""
        config = self.config.train
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if config.clip is None else config.clip)
        if not self.scaler.is_enabled():
            self.refuse_non_finite({"gradient norm": norm.item()}, names, number)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def skip(self, buffers: Mapping[str, Tensor], terms: Mapping[str, float], names: tuple[str, ...], number: int) -> None:
        """Count a step that changed no weight, and take back what its forward pass did to batch norm's statistics."""
        self.skipped += 1
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        values = ", ".join(f"{name} = {value}" for name, value in terms.items())
        hopeless = f"fp16 overflows at whatever scale of the loss on rank {rank()} ({values})"
        self.refuse(hopeless if self.scaler.get_scale() < SMALLEST_SCALE else None, names, number)

    def average(self, number: int) -> None:
        """Move the averaged weights; slowly at first, so that the drawn ones are soon forgotten."""
        if self.averaged is not None:
            average(self.averaged, self.model.state_dict(), min(self.config.train.ema or 0.0, (1 + number) / (10 + number)))

    def scaling(self) -> dict[str, float]:
        """What fp16 adds to the record."""
        return {"scale": self.scaler.get_scale(), "skipped": self.skipped} if self.scaler.is_enabled() else {}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": self.averaged,
            "skipped": self.skipped,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]
        if self.averaged is not None:
            self.averaged = {name: tensor.to(self.device) for name, tensor in state["averaged"].items()}


def distributed(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model with its gradients averaged over the ranks; buffers are equal on all of them already.

    Looking for unused parameters also keeps the buckets of gradients as they are at the start. Otherwise they are formed anew after
    the first step, and a resumed run would add three ranks' gradients in another order than the run it goes on from.
    """
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.14
    off: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True, **off)


@contextlib.contextmanager
def mendable() -> Iterator[None]:
    """What torch refuses because of a setting, as one line that names it."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0].split())
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UserError(f"train.compile: the network cannot be compiled here ({text[:300]}); switch it off") from None
        if "deterministic" in text:
            raise UserError(f"train.deterministic: {str(error).splitlines()[0]}; switch it off, or choose other parts") from None
        raise


def split(batch: Batch, parts: int) -> list[Batch]:
    """This rank's batch in equal consecutive parts."""
    size = len(batch.image) // parts
    cuts = [slice(index * size, (index + 1) * size) for index in range(parts)]
    maps = batch.superpixels
    return [Batch(batch.image[cut], batch.labels[cut], None if maps is None else maps[cut], batch.names[cut]) for cut in cuts]


def reseed(seed: int, step: int) -> None:
    """Draw the random state of a step from (seed, step, rank): dropout does not depend on where a run was resumed."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of its own memory."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def average(averaged: dict[str, Tensor], state: Mapping[str, Tensor], decay: float) -> None:
    """Move the exponential moving average towards `state`; counters are copied."""
    for name, tensor in state.items():
        if tensor.is_floating_point():
            averaged[name].lerp_(tensor, 1 - decay)
        else:
            averaged[name].copy_(tensor)
