"""COCO-Stuff 164k: 118,287 training and 5,000 validation images, 171 classes of things and stuff.

Caesar, Uijlings and Ferrari, COCO-Stuff: Thing and Stuff Classes in Context, CVPR 2018. Of the ids 1 to 182, eleven are used nowhere.
Label PNGs hold the id less one, 255 is unlabelled.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Source, by_stem, top_of
from pipeline.download.archives import Archive
from pipeline.labels.masks import ids_of, looked_up
from pipeline.labels.palette import distinct

# By id, from 1; a dash where no pixel has it.
LABELS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, stop sign, parking meter, bench, bird,
cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard,
sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -, dining table, -, -,
toilet, -, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush, -, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house,
leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform,
playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs,
stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
NAMES = {place: name for place, name in enumerate(" ".join(LABELS.split()).split(", "), start=1) if name != "-"}
COCO = "http://images.cocodataset.org/zips"
STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"


class COCOStuff164k:
    """The dataset's archives, classes and pairs."""

    classes = tuple(NAMES.values())
    palette = distinct(len(classes))
    splits = ("train", "val")
    archives = (
        Archive(
            name="train2017.zip",
            urls=(f"{COCO}/train2017.zip",),
            size=19_336_861_798,
            sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            sha1="10ad623668ab00c62c096f0ed636d6aff41faca5",
            note="19 GB",
        ),
        Archive(
            name="val2017.zip",
            urls=(f"{COCO}/val2017.zip",),
            size=815_585_330,
            sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            sha1="4950dc9d00dbe1c933ee0170f5797584351d2a41",
            note="0.8 GB",
        ),
        Archive(name="stuffthingmaps_trainval2017.zip", urls=(f"{STUFF}/stuffthingmaps_trainval2017.zip",), note="about 659 MB"),
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, train: Path, val: Path, maps: Path) -> Sequence[Source]:
        """Every image with the map of its name."""
        top = top_of(maps, ["train2017", "val2017"], "COCO-Stuff's stuffthingmaps_trainval2017")
        found = []
        for split, folder in (("train", train), ("val", val)):
            name = f"{split}2017"
            labels = by_stem(top / name)
            for stem, image in by_stem(top_of(folder, [name], f"COCO's {name}") / name).items():
                found.append(Source(split, stem, image, labels.get(stem, top / name / f"{stem}.png")))
        return found

    def label(self, path: Path) -> np.ndarray:
        """The uint8 [height, width] class ids."""
        table = {key - 1: place for place, key in enumerate(NAMES)} | {IGNORED: IGNORED}
        return looked_up(ids_of(upright(path)), table)
