"""BDD100K, semantic segmentation: 7,000 training and 1,000 validation images of streets, 1280 x 720, Cityscapes' 19 classes.

Yu et al., BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning, CVPR 2020. Masks hold training ids, 255 is ignored.
The 2,000 test images have no public labels and are left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Source, by_stem, top_of
from pipeline.datasets.cityscapes import Cityscapes
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up

HOW = "accept the licence at bdd100k.com and download them there (Download: 10K Images, Segmentation; kept at dl.cv.ethz.ch/bdd100k/data)"


class BDD100K:
    """The dataset's archives, classes and pairs."""

    classes, palette = Cityscapes.classes, Cityscapes.palette
    splits = ("train", "val")
    archives = (
        Archive(name="bdd100k_images_10k.zip", md5="08f26aecceda982568063d3d5873378e", note="1.1 GB", gate=HOW),
        Archive(name="bdd100k_sem_seg_labels_trainval.zip", md5="9a2968dde3345eeb689cffb1e26f9c78", note="419 MB", gate=HOW),
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, images: Path, labels: Path) -> Sequence[Source]:
        """Every image of the labelled splits with the mask of its name."""
        image_top = top_of(images, ["images/10k/train", "images/10k/val"], "BDD100K's 10k images") / "images/10k"
        label_top = top_of(labels, ["labels/sem_seg/masks/train", "labels/sem_seg/masks/val"], "BDD100K's semantic labels")
        found = []
        for split in self.splits:
            folder = label_top / "labels/sem_seg/masks" / split
            masks = by_stem(folder)
            found += [
                Source(split, stem, image, masks.get(stem, folder / f"{stem}.png")) for stem, image in by_stem(image_top / split).items()
            ]
        return found

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids as they stand."""
        return looked_up(ids_of(upright(path)), {place: place for place in (*range(len(self.classes)), IGNORED)})
