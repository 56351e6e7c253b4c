"""What figures are made of: finished runs, images with a chosen pixel, and inner maps taken by forward hooks on named submodules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.parts.layers import Output, resize
from models.segmenter import Segmenter
from pipeline.data.prepared import Pair, Prepared, open_image, open_label
from pipeline.data.superpixel_maps import SuperpixelMaps, read_set
from pipeline.evaluation.inference import scaled_size
from pipeline.evaluation.metrics import VOID
from pipeline.evaluation.restored import check_belongs, restored
from pipeline.evaluation.windows import Network, Scaled, in_unit_range
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Config
from pipeline.training.checkpoint import read_weights

COARSE = 256  # pixels of the shorter side at which objects are looked for


@dataclass(frozen=True)
class Run:
    """A finished run of one seed, its network in eval mode."""

    config: Config
    seed: int
    network: Network
    maps: SuperpixelMaps | None
    prepared: Prepared

    @property
    def model(self) -> Segmenter:
        """The network."""
        return self.network.model

    @property
    def title(self) -> str:
        """What a figure says of it."""
        return f"run {self.config.name}, seed {self.seed}"


@dataclass(frozen=True)
class Shot:
    """An image of the dataset with its labels (H, W) and a pixel (row, column) of it that figures look at."""

    pair: Pair
    image: Image.Image
    labels_HW: NDArray[np.uint8]
    pixel: tuple[int, int]
    short_side: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pair.height, self.pair.width

    @property
    def shape(self) -> float:
        """Height over width."""
        return self.pair.height / self.pair.width

    def array(self) -> NDArray[np.uint8]:
        """The image as an array."""
        return np.asarray(self.image)

    def at(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (row, column) of the pixel in a map of (height, width)."""
        row, column = (int((2 * place + 1) * goal // (2 * own)) for place, goal, own in zip(self.pixel, size, self.size, strict=True))
        return row, column


@dataclass(frozen=True)
class Sample:
    """The images of a split that a figure of the whole dataset counts over."""

    split: str
    pairs: Sequence[Pair]
    short_side: int | None

    def shots(self) -> Iterator[Shot]:
        """The images one after the other; none of their pixels is looked at."""
        return (load_shot(pair, (0, 0), self.short_side) for pair in self.pairs)

    @property
    def title(self) -> str:
        """What a figure says of it."""
        return f"{len(self.pairs)} images of {self.split}"


@dataclass(frozen=True)
class Seen:
    """A run's look at an image: its output, and by names of submodules what went into them and what came out."""

    output: Output
    inputs: Mapping[str, tuple[Any, ...]]
    outputs: Mapping[str, Any]
    size: tuple[int, int]

    def prediction(self) -> NDArray[np.uint8]:
        """The prediction at the image's size, uint8."""
        return classes_of(self.output.logits_BKhw, self.size, self.output.align_corners)


def described(runs: Sequence[Run | None], of: Shot | Sample) -> str:
    """The line under a figure's title: dataset, runs and seeds, and the image or images."""
    there = [run for run in runs if run is not None]
    image = f"image {of.pair.name}" if isinstance(of, Shot) else of.title
    return " · ".join([there[0].prepared.dataset, *(run.title for run in there), image])


def classes_of(logits_BKhw: Tensor, size: tuple[int, int], align_corners: bool = False) -> NDArray[np.uint8]:
    """The most probable classes of the first image at (height, width)."""
    return resize(logits_BKhw[:1].float(), size, align_corners).argmax(1)[0].to(torch.uint8).cpu().numpy()


def load_run(name: str, seed: int | None, prepared: Prepared, finetune: bool = False) -> Run:
    """A run's network; seed: null is the first that was published. UserError: not finished, or of other data."""
    again = f"run `uv run dvc repro {'finetune' if finetune else 'train'}@{name}`"
    folder = Path("runs") / name / "weights"
    found = {int(path.stem[5:]): path for path in folder.glob("seed-*.pt") if path.stem[5:].isdigit()}
    if not found:
        raise UserError(f"run {name} is not finished ({folder} has no weights): {again}")
    if seed is not None and seed not in found:
        raise UserError(f"figures.seed: run {name} has no seed {seed}; known: {', '.join(map(str, sorted(found)))}")
    seed = min(found) if seed is None else seed
    weights = read_weights(found[seed])
    if weights.config.data.dataset != prepared.dataset:
        raise UserError(f"{found[seed]} was trained on {weights.config.data.dataset}, data/prepared.json is of {prepared.dataset}: {again}")
    check_belongs(weights, found[seed], prepared, again)
    maps = read_set(weights.superpixels["set"]) if weights.config.superpixel_set is not None else None
    network = restored(weights, found[seed], torch.device("cuda" if torch.cuda.is_available() else "cpu"), again)
    return Run(weights.config, seed, network, maps, prepared)


def load_shot(pair: Pair, pixel: tuple[int, int] | None, short_side: int | None) -> Shot:
    """An image with its labels; pixel null: `telling_pixel`. UserError: a pixel outside it."""
    labels_HW = open_label(pair)
    if pixel is not None and (pixel[0] >= pair.height or pixel[1] >= pair.width):
        raise UserError(f"figures.pixel: [{pixel[0]}, {pixel[1]}] is outside image {pair.name}, which is {pair.height} x {pair.width}")
    return Shot(pair, open_image(pair), labels_HW, pixel or telling_pixel(labels_HW), short_side)


def telling_pixel(labels_HW: NDArray[np.uint8]) -> tuple[int, int]:
    """The pixel to look at where none is named: the midst of the smallest object that is not a speck.

    Of the connected regions of one class whose largest inscribed circle is wider than a tenth of the shorter side, the smallest, one that
    the image's border cuts off only where there is no other; where none is so wide, the one with the largest circle.
    """
    from scipy import ndimage

    best: tuple[tuple[float, ...], tuple[int, int]] | None = None
    step = max(1, min(labels_HW.shape) // COARSE)
    whole_HW, labels_HW = labels_HW, labels_HW[::step, ::step]
    for class_ in np.unique(labels_HW[labels_HW != VOID]):
        regions_HW, count = ndimage.label(labels_HW == class_)
        depth_HW = np.asarray(ndimage.distance_transform_edt(np.pad(labels_HW == class_, 1)))[1:-1, 1:-1]
        areas = np.bincount(regions_HW.ravel(), minlength=count + 1)
        cut_off = np.isin(np.arange(count + 1), [*regions_HW[[0, -1]].flat, *regions_HW[:, [0, -1]].flat])
        for number, place in enumerate(ndimage.maximum_position(depth_HW, regions_HW, range(1, count + 1)), start=1):
            depth = float(depth_HW[place])
            large = 2 * depth > min(labels_HW.shape) / 10
            rank = (0.0, float(cut_off[number]), float(areas[number])) if large else (1.0, -depth)
            if best is None or rank < best[0]:
                best = rank, (int(place[0]) * step, int(place[1]) * step)
    return best[1] if best else (whole_HW.shape[0] // 2, whole_HW.shape[1] // 2)


@torch.no_grad()
def look(run: Run, shot: Shot, names: Sequence[str] = (), changed: Mapping[str, Callable[[Any], Any]] | None = None, *,
         unary: bool = False) -> Seen:  # fmt: skip
    """One forward pass of an image, with what went through the submodules of these names.

    changed: functions that put another output in place of a submodule's. unary: the crf is its classifier alone, for who looks at what
    comes before it. ValueError: what the network itself refuses.
    """
    model, changed = run.model, changed or {}
    inputs: dict[str, tuple[Any, ...]] = {}
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def hook(module: nn.Module, given: tuple[Any, ...], made: Any) -> Any:
            made = changed[name](made) if name in changed else made
            inputs[name], outputs[name] = tuple(map(copied, given)), copied(made)
            return made

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys([*names, *changed])]
    try:
        scaled = scaled_view(run, shot)
        superpixels = None if scaled.superpixels_HW is None else scaled.superpixels_HW[None]
        output = model(in_unit_range(scaled.image_3HW, run.network)[None], superpixels, unary=unary)
    finally:
        for handle in hooks:
            handle.remove()
    return Seen(output, inputs, outputs, shot.size)


def scaled_view(run: Run, shot: Shot) -> Scaled:
    """The image, and superpixels where the run has them, as the network gets them."""
    superpixels_HW = None if run.maps is None else run.maps.open(shot.pair)
    return Scaled.of(run.network, shot.image, superpixels_HW, scaled_size(shot.size, shot.short_side, 1.0))


def copied(value: Any) -> Any:
    """Tensors as they are now: what follows may work in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(map(copied, value)) if isinstance(value, tuple | list) else value


def spread(count: int, wanted: int) -> list[int]:
    """The indices of `wanted` of `count` things, evenly spread; all of them where they are fewer."""
    wanted = min(count, wanted)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]
