"""PASCAL VOC 2012 with the Semantic Boundaries Dataset ("trainaug"): 10,582 training and 1,449 validation images, 21 classes.

Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2015; Hariharan et al., Semantic Contours from Inverse Detectors,
ICCV 2011. The training images are those of SBD (both of its splits) and of VOC's train, less VOC's val. VOC's own label is used where
there is one: an indexed PNG, 255 is ignored.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Colour, Source, lines_of, top_of
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up, matlab_ids

CLASSES: dict[str, Colour] = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}
VOC = Archive(
    name="VOCtrainval_11-May-2012.tar",
    urls=(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
    ),
    size=1_999_639_040,
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    sha1="4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    note="2.0 GB",
)
SBD_PAGE = "Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
SBD = Archive(
    name="benchmark.tgz",
    urls=(f"http://www.eecs.berkeley.edu/{SBD_PAGE}", f"http://www2.eecs.berkeley.edu/{SBD_PAGE}"),
    sha1="7129e0a480c2d6afb02b517bb18ac54283bfaa35",
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    note="1.4 GB, the Semantic Boundaries Dataset",
)


class VOC2012:
    """The dataset's archives, classes and pairs. augmented: with SBD's images; without them `train` has VOC's 1,464."""

    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    splits = ("train", "val")

    def __init__(self, root: Path, *, augmented: bool = True) -> None:
        self.root, self.augmented = root, augmented
        self.archives = (VOC, SBD) if augmented else (VOC,)

    def sources(self, voc: Path, sbd: Path | None = None) -> Sequence[Source]:
        """Every listed image; the training images in the order of their names."""
        top = top_of(
            voc, ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"], "VOC 2012"
        )
        val = lines_of(top / "ImageSets/Segmentation/val.txt")
        labels = {name: top / f"SegmentationClass/{name}.png" for name in lines_of(top / "ImageSets/Segmentation/train.txt")}
        if sbd is not None:
            other = top_of(sbd, ["cls", "train.txt", "val.txt"], "the Semantic Boundaries Dataset")
            names = {*lines_of(other / "train.txt"), *lines_of(other / "val.txt")} - set(val)
            labels = {name: other / f"cls/{name}.mat" for name in names} | labels
        pairs = [("train", name, labels[name]) for name in sorted(labels)]
        pairs += [("val", name, top / f"SegmentationClass/{name}.png") for name in val]
        return [Source(split, name, top / f"JPEGImages/{name}.jpg", label) for split, name, label in pairs]

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids of an indexed PNG or one of SBD's .mat files."""
        ids_HW = matlab_ids(path, "GTcls", "Segmentation") if path.suffix == ".mat" else ids_of(upright(path))
        return looked_up(ids_HW, {place: place for place in (*range(len(self.classes)), IGNORED)})
