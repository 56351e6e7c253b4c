"""A scene's plan: what it is set in and which things stand where in it. Its lengths are metres, so that any size of picture shows it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.datasets.drawn import setting, things
from pipeline.datasets.drawn.setting import Street
from pipeline.datasets.drawn.things import Thing


class Kind(NamedTuple):
    """A kind of thing: from `least` to `most` of them stand in a street, from `near` to `far` metres before the camera."""

    make: Callable[[np.random.Generator, Street, float], Thing]
    least: int
    most: int
    near: float
    far: float


KINDS = (
    Kind(things.tree, 1, 7, 6, 60),
    Kind(things.vehicle, 2, 7, 7, 55),
    Kind(things.person, 2, 8, 5, 30),
    Kind(things.pole, 2, 6, 6, 40),
    Kind(things.sign, 1, 4, 6, 25),
    Kind(things.litter, 0, 4, 5, 20),
)


class Plan(NamedTuple):
    """All that is seen, in the order in which it is painted; `things` begin with the farthest."""

    street: Street
    sky: setting.Sky
    skyline: Sequence[setting.Block]
    ground: setting.Ground
    houses: Sequence[setting.Houses]
    things: Sequence[Thing]
    bonnet: setting.Bonnet | None


def plan(rng: np.random.Generator) -> Plan:
    """A scene, of which `rng` decides everything."""
    street = setting.street(rng)
    sky, skyline, ground = setting.sky(rng), setting.skyline(rng), setting.ground(rng, street)
    houses = [setting.houses(rng, side) for side in (-1, 1)]
    places = [
        (float(rng.uniform(kind.near, kind.far)), kind.make) for kind in KINDS for _ in range(rng.integers(kind.least, kind.most + 1))
    ]
    placed = [make(rng, street, z) for z, make in sorted(places, key=lambda place: -place[0])]
    bonnet = setting.bonnet(rng) if rng.random() < 0.4 else None
    return Plan(street, sky, skyline, ground, houses, placed, bonnet)
