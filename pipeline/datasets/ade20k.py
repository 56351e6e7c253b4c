"""ADE20K as of the MIT scene parsing challenge 2016: 20,210 training and 2,000 validation images, 150 classes.

Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017. Label PNGs hold 0 for what is in no class, else the class's number from 1.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Source, by_stem, top_of
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up
from pipeline.labels.palette import distinct

FOLDERS = {"train": "training", "val": "validation"}
CLASSES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table, mountain, plant,
curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator,
grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet,
flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister, escalator,
ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket,
waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen,
blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower,
radiator, glass, clock, flag
"""


class ADE20K:
    """The dataset's archive, classes and pairs."""

    classes = tuple(" ".join(CLASSES.split()).split(", "))
    palette = distinct(len(classes))
    splits = tuple(FOLDERS)
    archives = (
        Archive(
            name="ADEChallengeData2016.zip",
            urls=("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
            size=967_382_037,
            sha256="7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
            sha1="219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            md5="7328b3957e407ddae1d3cbf487f149ef",
            note="0.97 GB; images for non-commercial research and education",
        ),
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every image with the label of its name."""
        top = top_of(
            folder, [f"{kind}/{name}" for kind in ("images", "annotations") for name in FOLDERS.values()], "ADE20K's challenge data"
        )
        found = []
        for split, name in FOLDERS.items():
            labels = by_stem(top / "annotations" / name)
            for stem, image in by_stem(top / "images" / name).items():
                found.append(Source(split, stem, image, labels.get(stem, top / "annotations" / name / f"{stem}.png")))
        return found

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids; 0 becomes 255, others lose one."""
        return looked_up(ids_of(upright(path)), {0: IGNORED} | {place + 1: place for place in range(len(self.classes))})
