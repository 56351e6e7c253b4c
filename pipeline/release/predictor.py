"""Predictions of a published run on images of one's own.

    predictor = Predictor.load("ecrf")
    image, ids_HW = predictor.image("street.jpg"), predictor("street.jpg")
    names = [predictor.classes[id] for id in set(ids_HW.flat)]

Superpixels, where the run has them, are made on the fly. A large image is predicted by windows, in memory that grows with its pixels,
and with its width times classes (docs/predictions.md), not with pixels times classes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.data import images, prepared
from pipeline.evaluation.inference import predict, scaled_size
from pipeline.evaluation.restored import restored
from pipeline.evaluation.windows import Network
from pipeline.ground import store
from pipeline.ground.errors import UserError
from pipeline.labels.palette import distinct
from pipeline.release import released
from pipeline.release.streaming import Told, predict_by_rows
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Config, Evaluation, SuperpixelSet
from pipeline.superpixels.slic import label_map
from pipeline.training.checkpoint import Weights, read_weights

MOST = 2**30  # pixels of an image: beyond Pillow's usual limit, for these are the user's own
WHOLE = 4 * 2**20  # pixels that a network takes at once; beyond, windows
LEAST = 1024  # pixels of a window's side, where the crop of the training was smaller
STEP = 0.875  # of a window's side to the next window: an eighth overlaps
BLOCK = 2048  # pixels of a side that get their superpixels together, of an image beyond `WHOLE`


@dataclass(frozen=True)
class Predictor:
    """A network and how it is to look at images. `protocol.mode` "whole" becomes windows for an image beyond `WHOLE` pixels."""

    network: Network
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    superpixels: SuperpixelSet | None
    protocol: Evaluation

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        seed: int | None = None,
        device: str | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        short_side: int | None = None,
        window: tuple[int, int] | None = None,
    ) -> "Predictor":
        """The predictor of a run's name or folder, a weights file, a folder that stages.export made, or MLflow's `models:/NAME/VERSION`.

        seed: null is the first one that was published. device: null is the GPU where there is one. scales, flip: what the softmax is
        averaged over. short_side: what images are fitted to before. window: height and width; null is whole where an image is not
        too large. UserError: no such run or seed, a damaged file, settings out of range, no such device.
        """
        positive = [*scales, *(() if short_side is None else (short_side,)), *(window or ())]
        if not scales or not all(0 < number < math.inf for number in positive):
            raise UserError("scales, short_side and window must be positive")
        path, weights, palette = weights_of(run, seed)
        network = restored_on(device_of(device), weights, path)
        window = fixed_window(weights.config, window)
        height, width = window or (max(LEAST, side) for side in weights.config.data.crop)
        protocol = Evaluation(
            name="predict", of=weights.config.name, split="", mode="slide" if window else "whole", window=(height, width),
            stride=(math.ceil(STEP * height), math.ceil(STEP * width)), short_side=short_side, scales=tuple(scales), flip=flip,
            launch=Launch(name="predict", backend="local"),
        )  # fmt: skip
        return cls(network, weights.classes, palette, weights.config.superpixel_set, protocol)

    @staticmethod
    def image(file: str | Path) -> Image.Image:
        """Any image file as an upright 8-bit RGB image; UserError: why it is none."""
        with large_images():
            return images.rgb(Path(file))

    def __call__(
        self, image: str | Path | Image.Image, keep: Callable[[int, Tensor], None] | None = None, told: Told | None = None
    ) -> NDArray[np.uint8]:
        """The class ids (H, W) of an image: a file, or what Pillow opened, as it stands there (a file is turned upright).

        `keep` gets the probabilities, as (first row, K R W) from top to bottom; `told` what of a large image is done: windows, or blocks
        of superpixels, their number, of how many. UserError: a file that is no image, a picture of more than 8 bits.
        """
        picture = image if isinstance(image, Image.Image) else self.image(image)
        if picture.mode[0] in "IF":  # Pillow's conversion makes all of them white
            raise UserError(f"a picture in Pillow's mode {picture.mode} would lose its shades: give the file's path, or 8 bits")
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        protocol, size = self.protocol, (picture.height, picture.width)
        largest = scaled_size(size, protocol.short_side, max(1.0, *protocol.scales))
        if largest[0] * largest[1] > WHOLE:
            protocol = replace(protocol, mode="slide")
        made = None if self.superpixels is None else superpixels_of(picture, self.superpixels, told)
        if protocol.mode == "slide":
            return predict_by_rows(self.network, picture, made, protocol, len(self.classes), keep, told)
        return predict(self.network, picture, made, protocol, len(self.classes), keep).multi_HW


@contextlib.contextmanager
def large_images() -> Iterator[None]:
    """Inside, Pillow opens images of up to `MOST` pixels."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def device_of(name: str | None) -> torch.device:
    """A device by its name; without one the GPU, where there is one."""
    with contextlib.suppress(RuntimeError):
        found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if found.type != "meta":  # which computes no numbers
            return found
    raise UserError(f"device {name} is unknown: cpu, cuda, or one of several GPUs, such as cuda:1")


def fixed_window(config: Config, window: tuple[int, int] | None) -> tuple[int, int] | None:
    """The window to slide: the only one that a ConvCRF with learned positions takes, else the one that was asked for."""
    if config.crf.options.get("position") is None:
        return window
    if window is not None and window != config.data.crop:
        raise UserError(f"run {config.name} has learned its crf's position for windows of {' x '.join(map(str, config.data.crop))} alone")
    return config.data.crop


def restored_on(device: torch.device, weights: Weights, path: Path) -> Network:
    """The network on a device, which must be there."""
    try:
        return restored(weights, path, device, "train it again")
    except (RuntimeError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"device {device} cannot be used: {' '.join(str(error).split())[:200]}") from None


def weights_of(run: str | Path, seed: int | None) -> tuple[Path, Weights, tuple[tuple[int, int, int], ...]]:
    """Where the weights are, they themselves, and their classes' colours: of a run, a .pt file, an export, or `models:/NAME/VERSION`."""
    if str(run).startswith("models:/"):
        from pipeline.release import registry

        run = registry.downloaded(str(run))
    if released.is_released(Path(run)):
        weights, palette = released.read(Path(run))
        if seed not in (None, weights.config.seed):
            raise UserError(f"{run} is of seed {weights.config.seed}, not {seed}")
        return Path(run), weights, palette
    path = weights_file(run, seed)
    weights = read_weights(path)
    return path, weights, palette_of(weights.classes, path)


def weights_file(run: str | Path, seed: int | None) -> Path:
    """The weights of a run's name or folder, or a file as it is; UserError: what there is instead."""
    if str(run).endswith(".pt"):
        return Path(run)
    folder = Path("runs") / run / "weights"
    if not folder.is_dir() and (Path(run) / "weights").is_dir():
        folder = Path(run) / "weights"
    found = {int(path.stem[5:]): path for path in folder.glob("seed-*.pt") if path.stem[5:].isdigit()}
    if not found:
        known = sorted({path.parents[1].name for path in Path("runs").glob("*/weights/seed-*.pt")})
        raise UserError(f"run {run} has no weights in {folder}: train it first; runs that are finished: {', '.join(known) or 'none'}")
    if seed is not None and seed not in found:
        raise UserError(f"run {run} has no seed {seed}; it has {', '.join(map(str, sorted(found)))}")
    return found[min(found) if seed is None else seed]


def palette_of(classes: tuple[str, ...], path: Path) -> tuple[tuple[int, int, int], ...]:
    """The colours of the dataset prepared here, or where the weights of `path` were trained, if it has these classes, else others."""
    for project in (Path(), *path.absolute().parents[3:4]):
        with contextlib.suppress(UserError):
            if (found := prepared.read(project / store.PREPARED)).classes == classes:
                return found.palette
    return distinct(len(classes))


def superpixels_of(image: Image.Image, settings: SuperpixelSet, told: Told | None = None) -> NDArray[np.int32]:
    """The superpixels of an RGB image; those of a large one are made block by block, each with the set's number of them."""
    H, W = image.height, image.width
    labels_HW, first = np.empty((H, W), np.int32), 0
    blocks_of = [1 if H * W <= WHOLE else -(-side // BLOCK) for side in (H, W)]
    rows, columns = (np.linspace(0, side, count + 1).astype(int) for side, count in zip((H, W), blocks_of, strict=True))
    blocks = [(*row, *column) for row in pairwise(rows) for column in pairwise(columns)]
    for done, (top, bottom, left, right) in enumerate(blocks, 1):
        block = label_map(np.asarray(image.crop((left, top, right, bottom))), settings)
        labels_HW[top:bottom, left:right] = block + first
        first += int(block.max()) + 1
        if told:
            told("blocks", done, len(blocks))
    return labels_HW
