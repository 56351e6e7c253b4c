"""The datasets: a table of constructors, and what each of them must offer.

A dataset is one file: which archives it comes from, its classes, and how its files become pairs of an image and a map
of class ids. Its constructor's keyword-only options are its own keys in the section `data` of params.yaml.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np

from pipeline.ground.errors import UserError
from pipeline.labels.masks import Colour

if TYPE_CHECKING:
    from pipeline.download.archives import Archive
    from pipeline.settings.schema import Data

IGNORED = 255  # the id of pixels without a class, in every label map of the workflow


@dataclass(frozen=True)
class Source:
    """One image and its label as the dataset has them on disk. `name` is unique within its split."""

    split: str
    name: str
    image: Path
    label: Path


class Dataset(Protocol):
    """What the stages download and prepare ask a dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class ids 0, 1, ..."""

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Red, green, blue of each class, for pictures."""

    @property
    def archives(self) -> "tuple[Archive, ...]":
        """What must be downloaded; empty where nothing has to be."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""

    @property
    def sources(self) -> Callable[..., Sequence[Source]]:
        """Every pair, given the folder that each archive was extracted into, in order.

        A dataset without archives is given one folder that it may put files into.
        """

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] map of class ids (255: ignored) in a label file; a UserError says why there is none."""


def refuse(faults: Sequence[str], summary: str) -> NoReturn:
    """Print every fault (`file: reason`) on a line of its own, then raise `summary` as a UserError."""
    for fault in faults:
        print(fault, file=sys.stderr, flush=True)
    raise UserError(summary)


def top_of(folder: Path, wanted: Sequence[str], what: str) -> Path:
    """The folder, `folder` itself or one below it, in which everything `wanted` stands; a UserError says what is missing.

    What the folders above it are called differs between an archive and its copies.
    """
    first = wanted[0]
    candidates = [folder, *sorted(path.parents[len(Path(first).parts) - 1] for path in folder.rglob(first))]
    for candidate in candidates:
        if all((candidate / name).exists() for name in wanted):
            return candidate
    raise UserError(f"{folder} has no folder with {', '.join(wanted)}: it is not {what}")


def by_stem(folder: Path) -> dict[str, Path]:
    """A folder's files by name without suffix."""
    return {path.stem: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")} if folder.is_dir() else {}


def lines_of(path: Path) -> list[str]:
    """The names in a split list: the first word of every line that has one."""
    try:
        return [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): is the archive complete?") from None


# The table comes last: what it names imports what stands above.
from pipeline.datasets.ade20k import ADE20K  # noqa: E402
from pipeline.datasets.bdd100k import BDD100K  # noqa: E402
from pipeline.datasets.camvid import CamVid  # noqa: E402
from pipeline.datasets.cityscapes import Cityscapes  # noqa: E402
from pipeline.datasets.cocostuff10k import COCOStuff10k  # noqa: E402
from pipeline.datasets.cocostuff164k import COCOStuff164k  # noqa: E402
from pipeline.datasets.folder import Folder  # noqa: E402
from pipeline.datasets.kitti import KITTI  # noqa: E402
from pipeline.datasets.pascal_context import PascalContext  # noqa: E402
from pipeline.datasets.scenes import Scenes  # noqa: E402
from pipeline.datasets.voc2012 import VOC2012  # noqa: E402

DATASETS: dict[str, Callable[..., Dataset]] = {
    "ade20k": ADE20K,
    "bdd100k": BDD100K,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "cocostuff10k": COCOStuff10k,
    "cocostuff164k": COCOStuff164k,
    "folder": Folder,
    "kitti": KITTI,
    "pascal_context": PascalContext,
    "scenes": Scenes,
    "voc2012": VOC2012,
}


def build(data: "Data") -> Dataset:
    """The dataset that the section `data` of params.yaml asks for."""
    return DATASETS[data.dataset](data.root, **data.options)
