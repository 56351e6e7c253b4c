"""What a scene is set in, as chance has it: the street with its camera and light, the sky, the skyline, the ground and the houses.

Each function's calls of `rng` are in a fixed order: another one is another scene.
"""

from typing import NamedTuple

import numpy as np

from pipeline.datasets.drawn.colours import LEAVES, PAINTS, WALLS
from pipeline.datasets.drawn.noise import waves


class Street(NamedTuple):
    """A straight street over flat ground, and the camera in it. Lengths are metres; the first three are picture heights."""

    focal: float
    horizon: float  # below the upper edge
    centre: float  # the street's vanishing point, right of the picture's middle
    eye: float  # above the ground
    lane: float  # the camera's place beside the middle of the road
    road: float  # half the road's width
    walk: float  # the pavement's width
    sun: float  # how much brighter what faces right is
    tint: np.ndarray  # the light's colour
    haze: np.ndarray  # its colour
    reach: float  # depth of 63 % haze


class Sky(NamedTuple):
    """From the zenith's colour to the haze's, under clouds: two grids of noise, and how much of the sky they cover."""

    zenith: np.ndarray
    large: np.ndarray
    small: np.ndarray
    cover: float


class Block(NamedTuple):
    """A house, or a tree, at the end of the street: its place, half its width, and its height."""

    x: float
    z: float
    half: float
    top: float
    tree: bool
    colour: np.ndarray


class Ground(NamedTuple):
    """Greys of the road and the pavements, a grid of wear, and what is on them."""

    asphalt: float
    slab: float
    wear: np.ndarray
    crossing: float | None  # the depth where it begins
    grass: np.ndarray
    shadow: float | None  # from where across the street on; None: none


class Houses(NamedTuple):
    """A row of 14 houses along one side (-1 left, 1 right), and a gap behind them."""

    side: int
    ends: np.ndarray  # depths [14]
    tops: np.ndarray  # heights [15]; 0: a gap
    walls: np.ndarray  # colours [15, 3]
    panes: np.ndarray  # brightnesses of windows [64]
    shops: np.ndarray  # which have one [15]
    brands: np.ndarray  # colours of their signs [15, 3]
    pitch: float  # from window to window
    floor: float  # from storey to storey


class Bonnet(NamedTuple):
    """The camera car's own bonnet: the share of the picture's height that it covers, and its colour."""

    share: float
    colour: np.ndarray


def street(rng: np.random.Generator) -> Street:
    """The street, its light and the camera."""
    focal, horizon, centre = rng.uniform(0.8, 1.1), rng.uniform(0.36, 0.52), rng.uniform(-0.25, 0.25)
    eye, lane = rng.uniform(1.5, 2.4), rng.uniform(-1.8, 1.8)
    road, walk = rng.uniform(3.2, 5.5), rng.uniform(1.5, 3.5)
    sun = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)
    warm, brightness = rng.uniform(-0.08, 0.12), rng.uniform(0.65, 1.1)
    tint = np.float32(brightness) * np.array((1 + warm, 1, 1 - warm), np.float32)
    haze = np.array((0.72, 0.76, 0.80), np.float32) * np.float32(rng.uniform(0.8, 1.1))
    return Street(focal, horizon, centre, eye, lane, road, walk, sun, tint, haze, reach=rng.uniform(60, 300))


def sky(rng: np.random.Generator) -> Sky:
    """A blue or a grey sky, with clouds from none to all over."""
    zenith = np.array((0.32, 0.50, 0.82), np.float32) if rng.random() < 0.65 else np.array((0.62, 0.65, 0.70), np.float32)
    return Sky(zenith, large=waves(rng, 5, 3), small=waves(rng, 14, 5), cover=rng.uniform(-1.2, 0.4))


def skyline(rng: np.random.Generator) -> list[Block]:
    """Blocks and trees at the end of the street, in the order in which they cover one another."""
    return [block(rng) for _ in range(rng.integers(4, 12))]


def block(rng: np.random.Generator) -> Block:
    """One of them."""
    z, half, top = rng.uniform(90, 160), rng.uniform(5, 14), rng.uniform(6, 26)
    x, tree = rng.uniform(-90, 90), rng.random() < 0.35
    colours = LEAVES if tree else WALLS
    return Block(x, z, half, top, tree, colours[rng.integers(len(colours))])


def ground(rng: np.random.Generator, street: Street) -> Ground:
    """Road, pavements and the grass behind them."""
    asphalt, slab, wear = rng.uniform(0.24, 0.44), rng.uniform(0.34, 0.62), waves(rng, 10, 7)
    crossing = rng.uniform(6, 20) if rng.random() < 0.3 else None
    grass = LEAVES[rng.integers(3)] * np.float32(1.2)
    shadow = rng.uniform(-1, 1) * street.road if rng.random() < 0.5 else None
    return Ground(asphalt, slab, wear, crossing, grass, shadow)


def houses(rng: np.random.Generator, side: int) -> Houses:
    """The houses along one side, few or many of them missing."""
    ends = np.cumsum(rng.uniform(6, 22, 14)) + rng.uniform(-4, 3)
    tops = (rng.uniform(5, 17, 15) * (rng.random(15) > rng.choice([0.1, 0.4, 0.9])) * (np.arange(15) < 14)).astype(np.float32)
    walls, panes, shops = WALLS[rng.integers(len(WALLS), size=15)], rng.uniform(0.3, 1.7, 64).astype(np.float32), rng.random(15) < 0.4
    brands, pitch, floor = PAINTS[rng.integers(len(PAINTS), size=15)], rng.uniform(1.6, 3.2), rng.uniform(2.6, 3.4)
    return Houses(side, ends, tops, walls, panes, shops, brands, pitch, floor)


def bonnet(rng: np.random.Generator) -> Bonnet:
    """A bonnet of any car's colour."""
    return Bonnet(rng.uniform(0.05, 0.10), PAINTS[rng.integers(len(PAINTS))] * rng.uniform(0.6, 1))
