"""PASCAL Context with its 59 most frequent classes: 4,998 training and 5,105 validation images of VOC 2010.

Mottaghi et al., The Role of Context for Object Detection and Semantic Segmentation in the Wild, CVPR 2014. Everything else, background
included, is ignored. Labels come either as .mat files of all 459 classes, or from the authors' archive of 59 (ids from 1, 0 is none).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Source, by_stem, lines_of, top_of
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up, matlab_ids
from pipeline.labels.palette import distinct

# In the order of the 59; the number is the class's among the 459.
CLASSES = {
    "aeroplane": 2, "bicycle": 23, "bird": 25, "boat": 31, "bottle": 34, "bus": 45, "car": 59, "cat": 65, "chair": 72, "cow": 98,
    "diningtable": 397, "dog": 113, "horse": 207, "motorbike": 258, "person": 284, "pottedplant": 308, "sheep": 347, "sofa": 368,
    "train": 416, "tvmonitor": 427, "bag": 9, "bed": 18, "bench": 22, "book": 33, "building": 44, "cabinet": 46, "ceiling": 68,
    "clothes": 80, "computer": 85, "cup": 104, "door": 115, "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187,
    "ground": 189, "keyboard": 220, "light": 232, "mountain": 259, "mouse": 260, "curtain": 105, "platform": 296, "sign": 355,
    "plate": 295, "road": 324, "rock": 326, "shelves": 349, "sidewalk": 354, "sky": 360, "snow": 366, "bedcloth": 19, "track": 415,
    "tree": 420, "truck": 424, "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
ALL = 459
PAGES = ("https://www.cs.stanford.edu/~roozbeh/pascal-context", "https://roozbehm.info/pascal-context")
VOC2010 = Archive(
    name="VOCtrainval_03-May-2010.tar",
    urls=("http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",),
    sha1="bf9985e9f2b064752bf6bd654d89f017c76c395a",
    md5="da459979d0c395079b5c75ee67908abb",
    note="1.3 GB, the images",
)
LABELS = {
    "459": Archive(
        name="trainval.tar.gz",
        urls=tuple(f"{page}/trainval.tar.gz" for page in PAGES),
        md5="df034edb2c12aa7d33b42b20bb1796e3",
        note="the .mat files of 459 classes; with the other archive set data.labels to 59",
    ),
    "59": Archive(
        name="59_context_labels.tar.gz",
        urls=tuple(f"{page}/59_context_labels.tar.gz" for page in PAGES),
        md5="f85d450010762a0e1080304286ce30ed",
        note="the labels of 59 classes; with the other archive set data.labels to 459",
    ),
}


class PascalContext:
    """The dataset's archives, classes and pairs. labels: which of the two label archives is read."""

    classes = tuple(CLASSES)
    palette = distinct(len(classes))
    splits = ("train", "val")

    def __init__(self, root: Path, *, labels: Literal["459", "59"] = "459") -> None:
        self.root = root
        self.archives = (VOC2010, LABELS[labels])
        self.table = dict.fromkeys(range(ALL + 1 if labels == "459" else 1), IGNORED)
        self.table |= {code if labels == "459" else place + 1: place for place, code in enumerate(CLASSES.values())}

    def sources(self, voc: Path, labels: Path) -> Sequence[Source]:
        """VOC 2010's splits of images that have labels."""
        lists = {split: f"ImageSets/Main/{split}.txt" for split in self.splits}
        top = top_of(voc, ["JPEGImages", *lists.values()], "VOC 2010")
        known = {path.stem: path for path in sorted(labels.rglob("*")) if path.suffix in (".mat", ".png")}
        images = by_stem(top / "JPEGImages")
        missing = labels / "trainval"
        return [
            Source(split, name, images.get(name, top / f"JPEGImages/{name}.jpg"), known.get(name, missing / f"{name}.mat"))
            for split, path in lists.items()
            for name in lines_of(top / path)
        ]

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids; all but the 59 become 255."""
        return looked_up(matlab_ids(path, "LabelMap") if path.suffix == ".mat" else ids_of(upright(path)), self.table)
