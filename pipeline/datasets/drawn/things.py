"""The kinds of things that stand and move in a street: what one of each is like, and where across the street it stands.

Lengths are metres: `x` right of the road's middle, `z` before the camera. Each function's calls of `rng` are in a fixed order:
another one is another scene.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pipeline.datasets.drawn.colours import DARK, GLASS, LEAVES, PAINTS
from pipeline.datasets.drawn.noise import waves
from pipeline.datasets.drawn.setting import Street


class Clump(NamedTuple):
    """Leaves around a point of a tree."""

    across: float
    up: float
    radius: float
    colour: np.ndarray


class Tree(NamedTuple):
    """A trunk under clumps of leaves, or (a trunk of no height) a bush; the clumps' edges are ragged by a grid of noise."""

    x: float
    z: float
    trunk: float
    size: float
    ragged: np.ndarray
    clumps: list[Clump]


class Vehicle(NamedTuple):
    """A car, or a tall van or lorry, from behind or in front (`lamps`: their colour), or sideways."""

    x: float
    z: float
    half: float
    top: float
    sideways: bool
    tall: bool
    paint: np.ndarray
    panes: np.ndarray
    lamps: ArrayLike | None


class Person(NamedTuple):
    """Somebody walking; `size` 1 is about 1.8 m."""

    x: float
    z: float
    size: float
    stride: float
    skin: np.ndarray
    coat: np.ndarray
    trousers: np.ndarray
    hair: np.ndarray


class Pole(NamedTuple):
    """A street lamp, or a traffic light of which `lit` says which lamp shines (0 green, 1 amber, 2 red)."""

    x: float
    z: float
    half: float
    top: float
    grey: np.ndarray
    lit: int | None


class Sign(NamedTuple):
    """A traffic sign (shape 0 a disc, 1 a triangle, 2 a board `wide` times as wide as high) on a pole of height `up`."""

    x: float
    z: float
    half: float
    up: float
    shape: int
    wide: float
    rim: ArrayLike
    inside: ArrayLike


class Litter(NamedTuple):
    """A bin or a cone."""

    x: float
    z: float
    top: float
    cone: bool
    colour: np.ndarray


Thing = Tree | Vehicle | Person | Pole | Sign | Litter


def kerbside(rng: np.random.Generator, street: Street, inner: float, outer: float) -> float:
    """A place on a pavement: metres right of the road's middle, from `inner` to `outer` of the pavement's width."""
    return float(rng.choice([-1, 1]) * (street.road + street.walk * rng.uniform(inner, outer)))


def tree(rng: np.random.Generator, street: Street, z: float) -> Tree:
    """A tree or a bush on the pavement or behind it."""
    leaf, trunk = LEAVES[rng.integers(len(LEAVES))] * np.float32(rng.uniform(0.8, 1.2)), rng.uniform(1.5, 3.2) * (rng.random() < 0.75)
    size = rng.uniform(1.2, 2.4) if trunk else rng.uniform(0.6, 1.2)
    x, ragged, clumps = kerbside(rng, street, 0.1, 2.0), waves(rng, 9, 9), []
    for _ in range(6):
        across, up, radius = rng.uniform(-0.8, 0.8) * size, trunk + rng.uniform(0.4, 1.6) * size, rng.uniform(0.5, 0.95) * size
        clumps.append(Clump(across, up, radius, leaf * np.float32(rng.uniform(0.75, 1.25))))
    return Tree(x, z, trunk, size, ragged, clumps)


def vehicle(rng: np.random.Generator, street: Street, z: float) -> Vehicle:
    """A vehicle on the road or parked at its edge."""
    paint, sideways, tall = PAINTS[rng.integers(len(PAINTS))], rng.random() < 0.25, rng.random() < 0.25
    half, top = (2.1 if sideways else 0.9) * (1.2 if tall else 1), rng.uniform(2.2, 3.4) if tall else rng.uniform(1.35, 1.6)
    reach = street.road - half * 0.7
    x = float(rng.choice([-1, 1])) * (reach + rng.uniform(0, 0.5) if rng.random() < 0.5 else rng.uniform(0.3, 0.6) * street.road)
    panes, lamps = GLASS * rng.uniform(0.7, 1.6), None
    if not sideways:
        lamps = (0.7, 0.1, 0.08) if rng.random() < 0.6 else (0.95, 0.93, 0.85)
    return Vehicle(x, z, half, top, sideways, tall, paint, panes, lamps)


def person(rng: np.random.Generator, street: Street, z: float) -> Person:
    """Somebody, mostly on a pavement."""
    size, stride = rng.uniform(0.85, 1.1), rng.uniform(0.02, 0.28)
    skin = np.array((0.80, 0.62, 0.50), np.float32) * np.float32(rng.uniform(0.4, 1.1))
    coat, trousers = PAINTS[rng.integers(len(PAINTS))], PAINTS[rng.integers(len(PAINTS))] * np.float32(0.6)
    x = kerbside(rng, street, 0.1, 0.9) if rng.random() < 0.8 else float(rng.uniform(-1, 1) * street.road)
    return Person(x, z, size, stride, skin, coat, trousers, hair=DARK * rng.uniform(1, 5))


def pole(rng: np.random.Generator, street: Street, z: float) -> Pole:
    """A street lamp, or a traffic light over a thinner pole, at the kerb."""
    grey, x = np.full(3, rng.uniform(0.18, 0.6), np.float32), kerbside(rng, street, 0.05, 0.35)
    if rng.random() < 0.7:
        return Pole(x, z, top=rng.uniform(5, 8), half=rng.uniform(0.07, 0.11), grey=grey, lit=None)
    return Pole(x, z, top=rng.uniform(2.8, 3.4), half=0.06, grey=grey, lit=int(rng.integers(3)))


def sign(rng: np.random.Generator, street: Street, z: float) -> Sign:
    """A traffic sign at the kerb."""
    half, up, shape = rng.uniform(0.32, 0.55), rng.uniform(2.1, 2.8), int(rng.integers(3))
    rim, inside = ((0.75, 0.08, 0.08), (0.92, 0.92, 0.9)) if rng.random() < 0.6 else ((0.9, 0.9, 0.92), (0.10, 0.25, 0.62))
    return Sign(kerbside(rng, street, 0.05, 0.4), z, half, up, shape, 1 + rng.random(), rim, inside)


def litter(rng: np.random.Generator, street: Street, z: float) -> Litter:
    """A bin or a cone on a pavement or at the kerb."""
    top, cone = rng.uniform(0.5, 1.1), rng.random() < 0.4
    x = kerbside(rng, street, -0.1, 0.8)
    return Litter(x, z, top, cone, np.array((0.9, 0.4, 0.1), np.float32) if cone else PAINTS[rng.integers(len(PAINTS))])
