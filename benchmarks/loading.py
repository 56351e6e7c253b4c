"""`uv run python -m benchmarks.loading`: what data costs: the training loader, a step's wait for it, and preparing.

On generated pictures as large as Cityscapes' and ADE20K's, in a temporary folder, with the files in the system's memory. The loader
runs in one thread, with and without the decoded store, against torchvision's reference transforms on the same files; those resize
whole images and normalise (which the network does here), ours draws again where one class fills a crop.
"""

import argparse
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import preparing
from benchmarks.measure import Case, measure
from benchmarks.methods import processor
from benchmarks.pictures import ADE20K, CITYSCAPES, CLASSES, Like, generate, title
from benchmarks.reference import Reference
from pipeline.data.prepared import Prepared, pairs
from pipeline.datasets.folder import Folder
from pipeline.preparation import pairs as preparation
from pipeline.settings.schema import Backbone, Config, Data, Launch, Part, Train
from pipeline.training import batches as data
from pipeline.training.batches import Batch

BATCH = 4
MEAN = (0.485, 0.456, 0.406)
PAIRS = 8  # that the loader has, one of them for validation
STRIDE = 8  # of the tiny network
SKIPPED = 3  # steps until the wait is a running training's
FRACTIONS = {CITYSCAPES: 100, ADE20K: 20}  # of a dataset's pairs, one in so many is prepared unless --files says otherwise


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=(__doc__ or "").partition("\n")[2])
    parser.add_argument("--files", type=int, default=None, help="pairs to prepare of each dataset; 1 in 100 and 1 in 20 unless given")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each variant")
    parser.add_argument("--seconds", type=float, default=20, help="of each dataset's loader, after which no further round begins")
    parser.add_argument("--steps", type=int, default=8, help="of each training")
    options = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}, Python {platform.python_version()}\n", flush=True)
    print("| loading, one thread | variant | images/s | ms per image | spread | of ours |\n|---|---|--:|--:|--:|--:|", flush=True)
    for like in FRACTIONS:
        alone(loading, like, options.rounds, options.seconds)
    print("\n| training, one data worker | variant | a step computes | and waits |\n|---|---|--:|--:|", flush=True)
    for like in FRACTIONS:
        alone(training, like, options.steps)
    print(f"\n{preparing.HEADER}", flush=True)
    for like, fraction in FRACTIONS.items():
        subprocess.run(preparing.command(like, options.files or like.files // fraction), check=True)


def alone(part: Callable[..., None], *arguments: object) -> None:
    """Run a part in a process and a folder of its own, so that one's memory and files are not another's."""
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=begin, args=(part, folder, arguments))
        process.start()
        process.join()
        if process.exitcode:
            print(f"| {part.__name__} failed with status {process.exitcode} |", flush=True)


def begin(part: Callable[..., None], folder: str, arguments: tuple[object, ...]) -> None:
    """What that process does."""
    os.environ["DATA_STORE"] = f"{folder}/store"
    os.chdir(folder)
    torch.set_num_threads(1)
    part(*arguments)


def prepared(like: Like) -> Prepared:
    """A generated dataset in the store of the current folder."""
    generate(like, PAIRS, Path("own"))
    return preparation.prepare(Folder(Path("own"), classes=CLASSES, val_share=1 / PAIRS), "folder", Path("unused"))[0]


def config(like: Like, **launch: Any) -> Config:
    """A run on the dataset's usual crops, of which only what the loader reads counts."""
    part = Part(name="none")
    return Config(
        name="benchmark",
        seed=0,
        data=Data(dataset="folder", root=Path("own"), crop=like.crop, scale=(0.5, 2.0), ratio_base=like.ratio_base),
        superpixels="none",
        superpixel_set=None,
        backbone=Backbone(name="none", output_stride=16),
        auxiliary=None,
        train=Train(iterations=10**9, batch_size=BATCH, seeds=(0,), optimizer="sgd", lr=0.1, weight_decay=0.0),
        head=part,
        crf=part,
        loss=part,
        launch=replace(Launch(name="benchmark", backend="local", workers=0), **launch),
    )


def ours(like: Like, manifest: Prepared, **launch: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the project's training loader."""
    for batch in data.train_batches(config(like, **launch), manifest, start=0, rank=0, world=1, mean=MEAN, pin=False):
        assert isinstance(batch, Batch), batch
        yield batch.image, batch.labels


def torchvisions(like: Like, manifest: Prepared, backend: str, processes: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of its reference transforms on the same files."""
    files = Reference(pairs(manifest, "train"), like.crop, min(like.ratio_base or (like.height,)), backend)
    order: Any = (number % len(files) for number in count())
    yield from DataLoader(files, BATCH, sampler=order, num_workers=processes, multiprocessing_context="fork" if processes else None)


def loading(like: Like, rounds: int, seconds: float) -> None:
    """Images per second of a core: one run is a batch."""
    manifest = prepared(like)
    list(islice(ours(like, manifest, decoded=True), -(-PAIRS // BATCH)))  # the first epoch writes the decoded store
    sources: Mapping[str, Iterator[object]] = {
        "ours": ours(like, manifest),
        "ours, decoded store": ours(like, manifest, decoded=True),
        "torchvision, PIL": torchvisions(like, manifest, "pil"),
        "torchvision, tensors": torchvisions(like, manifest, "tensor"),
    }
    case = Case(like.name, "", lambda device: {name: source.__next__ for name, source in sources.items()})
    measured = measure(case, torch.device("cpu"), rounds, seconds)
    for name, entry in measured.items():
        each, spread = 1000 * entry.median / BATCH, f"{1000 * entry.low / BATCH:.1f}-{1000 * entry.high / BATCH:.1f}"
        first, ratio = (title(like), "") if name == "ours" else ("", f"{entry.median / measured['ours'].median:.2f}")
        print(f"| {first} | {name} | {1000 / each:.1f} | {each:.1f} | {spread} | {ratio} |", flush=True)


def training(like: Like, steps: int) -> None:
    """How long a step of a tiny network computes, and how long it waits for its batch."""
    manifest = prepared(like)
    sources: Mapping[str, Callable[[], Iterator[tuple[Tensor, Tensor]]]] = {
        "ours": lambda: ours(like, manifest, workers=1),
        "ours, decoded store": lambda: ours(like, manifest, workers=1, decoded=True),
        "torchvision, PIL": lambda: torchvisions(like, manifest, "pil", 1),
    }
    list(islice(sources["ours, decoded store"](), -(-PAIRS // BATCH)))
    for name, source in sources.items():
        computed, waited = trained(source(), steps)
        first = title(like) if name == "ours" else ""
        print(f"| {first} | {name} | {1000 * computed:.0f} ms | {1000 * waited:.0f} ms |", flush=True)


def trained(batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> tuple[float, float]:
    """Mean seconds that a step computes, and that it waits, without the first ones."""
    network = nn.Conv2d(3, len(CLASSES), STRIDE, STRIDE)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    computed = waited = 0.0
    for number in range(SKIPPED + steps):
        began = time.perf_counter()
        image, labels = next(batches)
        arrived = time.perf_counter()
        nn.functional.cross_entropy(network(image), labels[:, ::STRIDE, ::STRIDE], ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number >= SKIPPED:
            waited += arrived - began
            computed += time.perf_counter() - arrived
    return computed / steps, waited / steps


if __name__ == "__main__":
    main()
