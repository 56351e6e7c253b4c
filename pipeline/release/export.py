"""Exporting a finished run: which images it is checked on, what is written, and what the card says of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.segmenter import Segmenter
from pipeline.data import images, prepared
from pipeline.evaluation.pictures import chosen
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.release import card, graph, released
from pipeline.release.graph import Check, Inputs, Traced
from pipeline.release.predictor import restored_on, weights_of
from pipeline.settings.schema import Config, SuperpixelSet
from pipeline.superpixels.slic import label_map
from pipeline.training.checkpoint import Weights

SPLITS = ("val", "train", "test")  # the first of these that the dataset has is checked on
LARGEST = 2**18  # pixels of an image that is checked on; of a larger one the middle is taken
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Order:
    """What is to be exported, where to, and what it is checked on."""

    run: str  # a name, a weights file, an export or models:/NAME/VERSION
    seed: int | None  # None: the first
    out: Path
    formats: tuple[str, ...]
    images: tuple[str, ...] = ()  # none: the dataset's


def export(order: Order) -> Iterator[str]:
    """Write what is ordered, telling line by line what was done.

    UserError: no such run, no images to check on, a method without such a form, a check that fails (its file is then removed), a folder
    that has another README.md.
    """
    check_folder(order.out)
    path, weights, palette = weights_of(order.run, order.seed)
    graphs = [name for name in ("onnx", "torch") if name in order.formats]
    images = pictures(weights, order) if graphs else []
    model = restored_on(CPU, weights, path).model
    traced = traced_of(model, weights.config, images, order.run) if graphs else None
    clear(order.out)
    written = []
    if "safetensors" in order.formats:
        released.write(order.out, weights, palette)
        written.append(card.File(released.WEIGHTS, f"the weights, with {released.CONFIG}", None))
        yield f"{released.WEIGHTS}, {released.CONFIG}: {sum(tensor.numel() for tensor in weights.state.values()):,} parameters and buffers"
    if traced is not None:
        trials, reference = trial_inputs(images, traced, weights.config), graph.original(model)
        for name in graphs:
            file = written_file(name, traced, weights, order.out)
            check = checked(file, graph.check(graph.onnx_runner(file) if name == "onnx" else graph.torch_runner(file), reference, trials))
            written.append(card.File(file.name, size_words(traced), check))
            yield f"{file.name}: {card.words(check)}; {size_words(traced)}"
    files.write_bytes(order.out / card.NAME, card.text(weights, palette, written, card.scores(weights)).encode())
    yield f"{weights.config.name}, seed {weights.config.seed}, is exported > {order.out}; its card: {order.out / card.NAME}"


def check_folder(out: Path) -> None:
    """UserError where the files cannot go there: a file, or a folder with another README.md, as a project's own."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if (readme := out / card.NAME).exists() and not card.is_card(readme):
        raise UserError(f"{readme} is no card of an export, and would be lost: name a folder of its own with --out")


def clear(out: Path) -> None:
    """Take an earlier export out of the folder, so that it has the files of one run, all of them on its card."""
    if (out / card.NAME).exists():
        for name in (card.NAME, graph.ONNX, graph.TORCH, released.WEIGHTS, released.CONFIG):
            (out / name).unlink(missing_ok=True)


def traced_of(model: Segmenter, config: Config, images: Sequence[Image.Image], run: str) -> Traced:
    """The network's graph, traced with an image and its mirror image as a batch; UserError where it has none."""
    first = inputs_of(fitted(images[0], traced_size(config, images[0])), config.superpixel_set)
    try:
        return graph.trace(model, paired(first), free=config.crf.options.get("position") is None)
    except UserError as error:
        raise UserError(f"run {run}: {error}; --format safetensors takes any method") from None


def paired(inputs: Inputs) -> Inputs:
    """A batch of one and its mirror image."""
    return tuple(torch.cat([part, part.flip(-1)]) for part in inputs)


def written_file(name: str, traced: Traced, weights: Weights, out: Path) -> Path:
    """The graph in one of its formats."""
    if name == "torch":
        graph.write_torch(traced, out / graph.TORCH)
        return out / graph.TORCH
    described = {"fingerprint": weights.fingerprint, "run": weights.config.name, "classes": "\n".join(weights.classes)}
    graph.write_onnx(traced, out / graph.ONNX, described)
    return out / graph.ONNX


def checked(file: Path, check: Check) -> Check:
    """The check, if it passed; else the file goes and a UserError tells what was measured."""
    if not check.passed:
        file.unlink()
        raise UserError(f"{file} is not what the network computes, and is removed: {card.words(check)}")
    return check


def size_words(traced: Traced) -> str:
    """Which images a graph takes."""
    return "any batch, height and width" if traced.free else f"any batch, height {traced.size[0]} and width {traced.size[1]} alone"


def pictures(weights: Weights, order: Order) -> list[Image.Image]:
    """The images to check on: those that were named, or some of the run's dataset."""
    if order.images:
        return [named(file) for file in order.images]
    dataset, otherwise = weights.config.data.dataset, "name images to check on: --images FILES"
    if not store.PREPARED.is_file():
        raise UserError(f"{store.PREPARED} does not exist, so that there are no images of {dataset} to check on: {otherwise}")
    found = prepared.read()
    if (found.dataset, found.classes) != (dataset, weights.classes):
        of = f"of {len(found.classes)} classes" if found.dataset == dataset else f"of {found.dataset}"
        raise UserError(f"run {order.run} is of {dataset} with {len(weights.classes)} classes, {store.PREPARED} is {of}: {otherwise}")
    split = next((split for split in (*SPLITS, *found.splits) if found.splits.get(split)), None)
    if split is None:
        raise UserError(f"{store.PREPARED} has no images: {otherwise}")
    pairs = found.splits[split]
    return [prepared.open_image(pairs[index]) for index in chosen(len(pairs))[:4]]


def named(file: str) -> Image.Image:
    """An image of the command line; UserError: why it is none."""
    try:
        return images.rgb(Path(file))
    except UserError as error:
        raise UserError(f"--images {file}: {error}") from None


def traced_size(config: Config, image: Image.Image) -> tuple[int, int]:
    """The size to trace with: the only one that a learned position has, else the image's, at most `LARGEST` pixels."""
    position, stride = config.crf.options.get("position"), config.crf.options.get("stride", 1)
    if position is not None:
        return position[0] * stride, position[1] * stride
    share = min(1.0, (LARGEST / (image.height * image.width)) ** 0.5)
    return max(1, int(share * image.height)), max(1, int(share * image.width))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image, which is enlarged where it is too small."""
    factor = max(1.0, size[0] / image.height, size[1] / image.width)
    larger = image.resize((max(size[1], round(factor * image.width)), max(size[0], round(factor * image.height))))
    left, top = (larger.width - size[1]) // 2, (larger.height - size[0]) // 2
    return larger.crop((left, top, left + size[1], top + size[0]))


def inputs_of(image: Image.Image, settings: SuperpixelSet | None) -> Inputs:
    """A batch of one image in [0, 1], with its superpixels where there are settings of some."""
    pixels_HW3 = np.asarray(image, np.uint8)
    image_13HW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None].contiguous().float() / 255
    if settings is None:
        return (image_13HW,)
    return image_13HW, torch.from_numpy(label_map(pixels_HW3, settings)).long()[None]


def trial_inputs(images: Sequence[Image.Image], traced: Traced, config: Config) -> list[Inputs]:
    """What a written graph is tried on: the images, the first also in a batch and at three quarters, or all at the only size."""
    settings = config.superpixel_set
    sizes = [traced_size(config, image) if traced.free else traced.size for image in images]
    trials = [inputs_of(fitted(image, size), settings) for image, size in zip(images, sizes, strict=True)]
    trials.insert(0, paired(trials[0]))
    if not traced.free:
        return trials
    smaller = max(1, 3 * sizes[0][0] // 4), max(1, 3 * sizes[0][1] // 4 + 1)
    return [*trials, inputs_of(images[0].resize(smaller[::-1]), settings)]
