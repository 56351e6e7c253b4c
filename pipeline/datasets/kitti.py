"""KITTI semantics: 200 labelled images of streets, about 1242 x 375, Cityscapes' 19 classes.

Alhaija et al., Augmented Reality Meets Computer Vision, IJCV 2018. It has no official validation split: the first 150 images by
name are `train`, the last 50 `val`, as is customary. Labels hold Cityscapes' own ids.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import Source, by_stem, top_of
from pipeline.datasets.cityscapes import TRAIN_IDS, Cityscapes
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up

SITE = "https://www.cvlibs.net/datasets/kitti"
TRAIN_IMAGES = 150


class KITTI:
    """The dataset's archive, classes and pairs."""

    classes, palette = Cityscapes.classes, Cityscapes.palette
    splits = ("train", "val")
    archives = (
        Archive(
            name="data_semantics.zip",
            note="CC BY-NC-SA",
            gate=f"register at {SITE} and download it at {SITE}/eval_semseg.php?benchmark=semantics2015",
        ),
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every labelled image; the test images, whose labels are withheld, are left out."""
        top = top_of(folder, ["training/image_2", "training/semantic"], "KITTI's data_semantics") / "training"
        labels = by_stem(top / "semantic")
        found = []
        for place, (stem, image) in enumerate(by_stem(top / "image_2").items()):
            split = "train" if place < TRAIN_IMAGES else "val"
            found.append(Source(split, stem, image, labels.get(stem, top / "semantic" / f"{stem}.png")))
        return found

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids; what is not trained becomes 255."""
        return looked_up(ids_of(upright(path)), TRAIN_IDS)
