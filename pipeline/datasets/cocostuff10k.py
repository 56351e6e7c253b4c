"""COCO-Stuff 10k, v1.1: 9,000 training and 1,000 validation images, 171 classes of things and stuff.

Caesar, Uijlings and Ferrari, COCO-Stuff: Thing and Stuff Classes in Context, CVPR 2018. Labels are .mat files whose `S` holds ids from
1, and 0 for unlabelled pixels. Published scores are on `test`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.datasets import IGNORED, Source, by_stem, lines_of, top_of
from pipeline.datasets.cocostuff164k import NAMES, STUFF
from pipeline.download.archives import Archive
from pipeline.labels.masks import looked_up, matlab_ids
from pipeline.labels.palette import distinct

LISTS = {"train": "imageLists/train.txt", "val": "imageLists/test.txt"}


class COCOStuff10k:
    """The dataset's archive, classes and pairs."""

    classes = tuple(NAMES.values())
    palette = distinct(len(classes))
    splits = tuple(LISTS)
    archives = (Archive(name="cocostuff-10k-v1.1.zip", urls=(f"{STUFF}/cocostuff-10k-v1.1.zip",), note="about 2.0 GB"),)

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every listed image."""
        top = top_of(folder, [*LISTS.values(), "images", "annotations"], "COCO-Stuff 10k v1.1")
        images, labels = by_stem(top / "images"), by_stem(top / "annotations")
        return [
            Source(split, name, images.get(name, top / f"images/{name}.jpg"), labels.get(name, top / f"annotations/{name}.mat"))
            for split, path in LISTS.items()
            for name in lines_of(top / path)
        ]

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids."""
        return looked_up(matlab_ids(path, "S"), {0: IGNORED} | {key: place for place, key in enumerate(NAMES)})
