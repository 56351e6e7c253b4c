"""Cityscapes, fine annotations: 2,975 training and 500 validation images of streets, 2048 x 1024, 19 classes.

Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016. The labels of the 1,525 test images are
withheld: their files hold void alone, and they are left out here. Label files hold Cityscapes' own 34 ids, of which 19 are trained.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Colour, Source, top_of
from pipeline.download.accounts import Account
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up

SITE = "https://www.cityscapes-dataset.com"
ACCOUNT = Account(f"{SITE}/login/", "CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD", {"submit": "Login"})
HOW = (
    "set CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD to your own account's, whose licence you accepted, "
    f"or log in at {SITE}/login/ and download them at {SITE}/downloads/"
)
IMAGE, LABEL = "_leftImg8bit", "_gtFine_labelIds"
CLASSES: dict[str, tuple[int, Colour]] = {  # the dataset's own id, and its colour
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
# Ids 0 to 33 are all; -1, license plates, is 255 in 8 bits.
TRAIN_IDS = dict.fromkeys([*range(34), 255, -1], IGNORED) | {entry[0]: place for place, entry in enumerate(CLASSES.values())}


class Cityscapes:
    """The dataset's archives, classes and pairs."""

    classes = tuple(CLASSES)
    palette = tuple(colour for _, colour in CLASSES.values())
    splits = ("train", "val")
    archives = (
        Archive(
            name="leftImg8bit_trainvaltest.zip",
            urls=(f"{SITE}/file-handling/?packageID=3",),
            sha1="2c0b77ce9933cc635adda307fbba5566f5d9d404",
            note="11 GB",
            gate=HOW,
            account=ACCOUNT,
        ),
        Archive(
            name="gtFine_trainvaltest.zip",
            urls=(f"{SITE}/file-handling/?packageID=1",),
            sha1="99f532cb1af174f5fcc4c5bc8feea8c66246ddbc",
            note="241 MB",
            gate=HOW,
            account=ACCOUNT,
        ),
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, images: Path, labels: Path) -> Sequence[Source]:
        """Every image of the labelled splits with the labels of its name."""
        image_top = top_of(images, ["leftImg8bit/train", "leftImg8bit/val"], "Cityscapes' leftImg8bit_trainvaltest") / "leftImg8bit"
        label_top = top_of(labels, ["gtFine/train", "gtFine/val"], "Cityscapes' gtFine_trainvaltest") / "gtFine"
        found = []
        for split in self.splits:
            for image in sorted((image_top / split).glob(f"*/*{IMAGE}.png")):
                name = image.stem.removesuffix(IMAGE)
                found.append(Source(split, name, image, label_top / split / image.parent.name / f"{name}{LABEL}.png"))
        return found

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids; what is not trained becomes 255."""
        return looked_up(ids_of(upright(path)), TRAIN_IDS)
