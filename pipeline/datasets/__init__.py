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

from pipeline.errors import UserError
from pipeline.masks import Colour

if TYPE_CHECKING:
    from pipeline.archives import Archive
    from pipeline.schema import Data

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


# The table comes last: what it names imports what stands above.
from pipeline.datasets.camvid import CamVid  # noqa: E402
from pipeline.datasets.folder import Folder  # noqa: E402
from pipeline.datasets.scenes import Scenes  # noqa: E402

DATASETS: dict[str, Callable[..., Dataset]] = {"scenes": Scenes, "camvid": CamVid, "folder": Folder}


def build(data: "Data") -> Dataset:
    """The dataset that the section `data` of params.yaml asks for."""
    return DATASETS[data.dataset](data.root, **data.options)
