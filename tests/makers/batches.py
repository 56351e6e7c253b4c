"""Batches of a small run, the fault that ends them, and whether two are the same."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.data.prepared import Prepared
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Backbone, Config, Data, Jitter, Part, SuperpixelSet, Train
from pipeline.training import batches as data
from pipeline.training.batches import Batch, Fault

SLIC = SuperpixelSet(algorithm="slic", segments=12)
MEAN = (0.5, 0.25, 0.125)


def config(**changes) -> Config:
    """A run on crops of 16 x 24; `data`, `train` and `launch` change single keys of theirs."""
    jitter = Jitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    sections = {
        "data": Data(dataset="scenes", root=Path("x"), crop=(16, 24), scale=(0.5, 2.0), jitter=jitter),
        "train": Train(iterations=9, batch_size=4, seeds=(0,), optimizer="sgd", lr=0.1, weight_decay=0.0),
        "launch": Launch(name="local", backend="local", workers=0),
    }
    sections = {name: dataclasses.replace(section, **changes.pop(name, {})) for name, section in sections.items()}
    base = Config(
        name="run", seed=0, superpixels="slic", superpixel_set=SLIC, backbone=Backbone(name="x", output_stride=16), auxiliary=None,
        head=Part(name="x"), crf=Part(name="x"), loss=Part(name="x"), **sections,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def batches(config: Config, prepared: Prepared, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch | Fault]:
    return data.train_batches(config, prepared, start=start, rank=rank, world=world, mean=MEAN, pin=False)


def same(one: Batch, other: Batch) -> bool:
    return one.names == other.names and all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def fault(config: Config, prepared: Prepared) -> str:
    """The message of the first Fault."""
    return next(made.message for made in batches(config, prepared) if isinstance(made, Fault))
