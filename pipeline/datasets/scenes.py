"""Procedurally generated street scenes: real files without a download, as many and as large as one asks for.

A scene is painted far to near through a pinhole camera over flat ground, at twice the size: colours are averaged, so that
they mix across boundaries, and a pixel's label is its majority's. Colours are shared on purpose (cars and clothes take
walls' colours, walls and clouds the road's greys), so that a pixel's surroundings tell its class. Bins, cones and the
camera car's bonnet have no class.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from pipeline.data.images import upright
from pipeline.datasets import IGNORED, Source
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.workers import mapped

FIRST_OF_VAL = 1_000_000_000  # indices from here on are val's: no count of train images reaches them
SMALLEST, LARGEST = 32, 4096  # pixels of a side
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk: no bytes, its name, its checksum
OVER = 2  # canvas pixels per pixel, each way
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, VEHICLE, PERSON, POLE, SIGN = range(9)
GRAIN = np.array([0.01, 0.05, 0.06, 0.06, 0.30, 0.02, 0.06, 0.04, 0.02, 0.04], np.float32)  # roughness by class, void last
WALLS = np.array(
    [
        (0.55, 0.52, 0.48),
        (0.62, 0.35, 0.26),
        (0.72, 0.66, 0.52),
        (0.44, 0.45, 0.48),
        (0.80, 0.78, 0.74),
        (0.50, 0.32, 0.28),
        (0.66, 0.58, 0.44),
        (0.36, 0.40, 0.46),
        (0.74, 0.56, 0.46),
        (0.58, 0.62, 0.62),
    ],
    np.float32,
)
PAINTS = np.concatenate(
    [
        WALLS[[0, 3, 4, 7]],
        np.array(
            [(0.08, 0.08, 0.10), (0.55, 0.08, 0.08), (0.10, 0.18, 0.42), (0.85, 0.85, 0.86), (0.30, 0.34, 0.22), (0.75, 0.68, 0.20)],
            np.float32,
        ),
    ]
)
LEAVES = np.array([(0.20, 0.36, 0.12), (0.28, 0.42, 0.16), (0.14, 0.28, 0.14), (0.42, 0.42, 0.16), (0.50, 0.34, 0.14)], np.float32)
GLASS = np.array((0.16, 0.20, 0.25), np.float32)
DARK = np.array((0.06, 0.06, 0.07), np.float32)


class Scenes:
    """`train_images` and `val_images` scenes of `height` x `width` pixels; each depends on its index, `seed` and size alone."""

    classes = ("sky", "building", "road", "pavement", "vegetation", "vehicle", "person", "pole", "sign")
    palette = (
        (86, 180, 233),
        (130, 90, 70),
        (90, 90, 100),
        (204, 121, 167),
        (0, 140, 90),
        (0, 90, 200),
        (220, 50, 32),
        (240, 228, 66),
        (255, 150, 0),
    )
    archives = ()
    splits = ("train", "val")

    def __init__(self, root: Path, *, train_images: int, val_images: int, height: int, width: int, seed: int) -> None:
        for key, value in {"height": height, "width": width}.items():
            if not SMALLEST <= value <= LARGEST:
                raise UserError(f"data.{key} must be from {SMALLEST} to {LARGEST} pixels, not {value}")
        for key, value, least in (("train_images", train_images, 1), ("val_images", val_images, 1), ("seed", seed, 0)):
            if not least <= value < FIRST_OF_VAL:
                raise UserError(f"data.{key} must be {least} or more, not {value}")
        self.root, self.height, self.width, self.seed = root, height, width, seed
        self.counts = {"train": train_images, "val": val_images}

    def sources(self, folder: Path) -> Sequence[Source]:
        """Every pair; scenes without whole files in `folder` are drawn first, so a killed run goes on where it was."""
        # The folder's name stands for all that the pictures depend on, this file included.
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        settings = json.dumps([self.seed, self.height, self.width, code, np.__version__])
        folder = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
        sources, missing = [], []
        for split, first in (("train", 0), ("val", FIRST_OF_VAL)):
            for place in range(self.counts[split]):
                stem = folder / f"{split}-{place:06}"
                source = Source(split, stem.name, stem.with_suffix(".png"), stem.with_suffix(".label.png"))
                sources.append(source)
                if not (whole(source.image) and whole(source.label)):
                    missing.append((first + place, source))
        for _ in mapped(self.draw, missing, f"drawing {self.height} x {self.width} scenes", done=len(sources) - len(missing)):
            pass
        return sources

    def draw(self, job: tuple[int, Source]) -> None:
        """Write one scene's two files."""
        index, source = job
        image_HW3, labels_HW = scene(self.seed, index, self.height, self.width)
        for array, path in ((image_HW3, source.image), (labels_HW, source.label)):
            with files.replacing(path) as file:
                Image.fromarray(array).save(file, "PNG", compress_level=4)

    def label(self, path: Path) -> np.ndarray:
        """The class ids [height, width] of a label file."""
        return np.array(upright(path))


def whole(path: Path) -> bool:
    """Whether a PNG file is there to its end."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:  # absent, or shorter than that
        return False


class Patch(NamedTuple):
    """The canvas pixels around an object at depth `z`: `u` metres to its right [1, w], `v` metres above the ground [h, 1]."""

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray
    z: float


class Canvas:
    """The picture, and the camera that it is seen through. Lengths are metres; rows and columns are canvas pixels."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.image_HW3 = np.zeros((height * OVER, width * OVER, 3), np.float32)
        self.labels_HW = np.full((height * OVER, width * OVER), SKY, np.uint8)
        self.focal = height * OVER * rng.uniform(0.8, 1.1)
        self.horizon = height * OVER * rng.uniform(0.36, 0.52)
        self.centre = width * OVER / 2 + height * OVER * rng.uniform(-0.25, 0.25)
        self.eye = rng.uniform(1.5, 2.4)  # above the ground
        self.lane = rng.uniform(-1.8, 1.8)  # the camera's place beside the middle of the road
        self.road, self.walk = rng.uniform(3.2, 5.5), rng.uniform(1.5, 3.5)  # half the road's width, the pavement's
        self.sun = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)  # how much brighter what faces right is
        warm, brightness = rng.uniform(-0.08, 0.12), rng.uniform(0.65, 1.1)
        self.tint = np.float32(brightness) * np.array((1 + warm, 1, 1 - warm), np.float32)
        self.haze = np.array((0.72, 0.76, 0.80), np.float32) * np.float32(rng.uniform(0.8, 1.1))
        self.reach = rng.uniform(60, 300)  # depth of 63 % haze

    def hazed(self, colour: np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """A colour as it looks from a distance; `z` broadcasts against the colour's channels."""
        share = np.exp(-np.asarray(z, np.float32) / np.float32(self.reach))
        return self.haze + share * (colour - self.haze)

    def patch(self, x: float, z: float, reach: float, top: float) -> Patch:
        """The pixels of an object on the ground, `x` right of the road's middle, `reach` to both sides and `top` high."""
        scale = self.focal / z
        middle, base = self.centre + scale * (x - self.lane), self.horizon + scale * self.eye
        rows = slice(*np.clip([int(base - scale * top), int(base) + 2], 0, len(self.labels_HW)))
        columns = slice(*np.clip([int(middle - scale * reach), int(middle + scale * reach) + 2], 0, self.labels_HW.shape[1]))
        u = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle) / scale
        v = (base - np.arange(rows.start, rows.stop, dtype=np.float32) - 0.5) / scale
        return Patch(rows, columns, u.astype(np.float32)[None], v.astype(np.float32)[:, None], z)

    def paint(self, patch: Patch, mask_hw: np.ndarray, colour: ArrayLike, label: int, round_: float = 0.0) -> None:
        """Colour where the mask holds, brighter towards the sun over a body `round_` metres wide to each side (0: flat)."""
        shade = 1 + np.float32(self.sun) * np.clip(patch.u / round_, -1, 1) if round_ else np.ones_like(patch.u)
        shaded = self.hazed(np.asarray(colour, np.float32) * shade[..., None], patch.z)
        np.copyto(self.image_HW3[patch.rows, patch.columns], shaded, where=mask_hw[..., None])
        np.copyto(self.labels_HW[patch.rows, patch.columns], np.uint8(label), where=mask_hw)


def scene(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image [height, width, 3] and labels [height, width] (255: no class), both uint8, a pure function of the arguments."""
    rng = np.random.default_rng((seed, index))
    canvas = Canvas(rng, height, width)
    paint_sky(canvas, rng)
    paint_skyline(canvas, rng)
    paint_ground(canvas, rng)
    for side in (-1, 1):
        paint_facades(canvas, rng, side)
    paint_objects(canvas, rng)
    if rng.random() < 0.4:
        paint_bonnet(canvas, rng)
    return photograph(canvas, rng), majority(canvas.labels_HW)


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient to the haze at the horizon, and clouds from none to all over."""
    H, W = min(int(canvas.horizon) + 2, len(canvas.labels_HW)), canvas.labels_HW.shape[1]  # the ground covers the rest
    zenith = np.array((0.32, 0.50, 0.82), np.float32) if rng.random() < 0.65 else np.array((0.62, 0.65, 0.70), np.float32)
    height_H1 = np.clip(np.arange(H, dtype=np.float32) / np.float32(canvas.horizon), 0, 1)[:, None]
    clear_H13 = zenith + (canvas.haze - zenith) * height_H1[..., None]
    cover_HW1 = np.clip(3 * (smooth(rng, 5, 3, H, W) + 0.5 * smooth(rng, 14, 5, H, W) + rng.uniform(-1.2, 0.4)), 0, 0.9)[..., None]
    canvas.image_HW3[:H] = clear_H13 + (np.float32(0.88) - clear_H13) * cover_HW1


def paint_skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blocks and trees at the end of the street, where the ground begins."""
    for _ in range(rng.integers(4, 12)):
        z, half, top = rng.uniform(90, 160), rng.uniform(5, 14), rng.uniform(6, 26)
        patch = canvas.patch(rng.uniform(-90, 90), z, half, top)
        if rng.random() < 0.35:
            leaf = LEAVES[rng.integers(len(LEAVES))]
            canvas.paint(patch, (patch.u / half) ** 2 + (patch.v / (top * 0.6)) ** 2 < 1, leaf, VEGETATION, half)
        else:
            wall = WALLS[rng.integers(len(WALLS))]
            windows = (part(patch.u / 3) > 0.5) & (part(patch.v / 3) > 0.45)
            canvas.paint(patch, np.abs(patch.u) + 0 * patch.v < half, np.where(windows[..., None], 0.6 * wall, wall), BUILDING)


def paint_ground(canvas: Canvas, rng: np.random.Generator) -> None:
    """Road with markings and patches, pavements with slabs and kerbs, grass behind them, and the shadow of one side."""
    H, W = canvas.labels_HW.shape
    start = min(int(canvas.horizon) + 1, H - 1)
    rows = np.arange(start, H, dtype=np.float32)[:, None] + 0.5
    z_h1 = np.float32(canvas.focal * canvas.eye) / (rows - np.float32(canvas.horizon))
    right_W = (np.arange(W, dtype=np.float32) + np.float32(0.5 - canvas.centre)) / np.float32(canvas.focal)
    x_hW = right_W * z_h1 + np.float32(canvas.lane)
    across_hW = np.abs(x_hW)
    asphalt, slab = np.float32(rng.uniform(0.24, 0.44)), np.float32(rng.uniform(0.34, 0.62))
    worn_hW = 1 + np.float32(0.10) * smooth(rng, 10, 7, H - start, W)
    on_road, on_walk = across_hW < canvas.road, across_hW < canvas.road + canvas.walk
    grey_hW = np.where(on_road, asphalt, slab) * worn_hW
    near = int(np.searchsorted(-z_h1[:, 0], -15))  # rows from here on are near enough for slabs to be seen
    joints = (part(x_hW[near:] / np.float32(0.8)) < 0.06) | (part(z_h1[near:] / np.float32(0.8)) < 0.10)
    grey_hW[near:][joints & ~on_road[near:]] *= np.float32(0.8)
    grey_hW[(across_hW < canvas.road + 0.18) & ~on_road] = 0.66  # the kerb
    markings = ((across_hW < 0.09) & (part(z_h1 / 7) < 0.5)) | (np.abs(across_hW - np.float32(canvas.road - 0.35)) < 0.06)
    if rng.random() < 0.3:  # a crossing
        begin = rng.uniform(6, 20)
        markings |= (z_h1 > begin) & (z_h1 < begin + 3) & (part(x_hW) < 0.5) & (across_hW < canvas.road - 0.4)
    grey_hW[markings & (worn_hW > 0.94)] = 0.8
    colour_hW3 = grey_hW[..., None] * np.array((1, 0.99, 0.97), np.float32)
    grass = LEAVES[rng.integers(3)] * np.float32(1.2)
    np.copyto(colour_hW3, grass * worn_hW[..., None], where=~on_walk[..., None])
    if rng.random() < 0.5:  # the shadow of one side's buildings
        colour_hW3[np.sign(canvas.sun) * x_hW > rng.uniform(-1, 1) * canvas.road] *= np.float32(0.6)
    canvas.image_HW3[start:] = canvas.hazed(colour_hW3, z_h1[..., None])
    canvas.labels_HW[start:] = np.where(on_road, np.uint8(ROAD), np.where(on_walk, np.uint8(PAVEMENT), np.uint8(VEGETATION)))


def paint_facades(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    """The row of houses along one side (-1 left, 1 right): walls with windows, shop signs at the ground floor, and gaps."""
    ends = np.cumsum(rng.uniform(6, 22, 14)) + rng.uniform(-4, 3)
    tops = (rng.uniform(5, 17, 15) * (rng.random(15) > rng.choice([0.1, 0.4, 0.9])) * (np.arange(15) < 14)).astype(np.float32)
    walls, panes, shops = WALLS[rng.integers(len(WALLS), size=15)], rng.uniform(0.3, 1.7, 64).astype(np.float32), rng.random(15) < 0.4
    brands, pitch, floor = PAINTS[rng.integers(len(PAINTS), size=15)], np.float32(rng.uniform(1.6, 3.2)), np.float32(rng.uniform(2.6, 3.4))
    H, W = canvas.labels_HW.shape
    out_W = side * (np.arange(W, dtype=np.float32) + np.float32(0.5 - canvas.centre))
    far = np.float32(canvas.focal * (canvas.road + canvas.walk - side * canvas.lane))  # depth times columns from the centre
    columns = np.flatnonzero(out_W > far / 140)
    if not len(columns):
        return
    columns = slice(columns[0], columns[-1] + 1)
    z_w = far / out_W[columns]
    house_w = np.searchsorted(ends, z_w)
    top_w, shop_w = tops[house_w], shops[house_w]
    rise_w = z_w / np.float32(canvas.focal)  # metres per row
    first = max(0, int(canvas.horizon - ((top_w - np.float32(canvas.eye)) / rise_w).max()) - 1)
    last = min(H, int(canvas.horizon + canvas.eye / rise_w.min()) + 2)
    v_hw = (np.float32(canvas.horizon - 0.5) - np.arange(first, last, dtype=np.float32)[:, None]) * rise_w + np.float32(canvas.eye)
    along_w, up_hw = z_w / pitch, (v_hw - np.float32(3.4)) / floor
    storey_hw, pane_w = np.floor(up_hw), np.floor(along_w)
    up_hw -= storey_hw
    window_hw = (np.abs(along_w - pane_w - 0.6) < 0.25) & (np.abs(up_hw - 0.55) < 0.25) & (v_hw > 3.4) & (v_hw < top_w - 0.6)
    window_hw |= shop_w & (v_hw > 0.4) & (v_hw < 2.5) & (part(along_w / 2) > 0.12)
    light = np.float32(1 - side * canvas.sun)
    colour_hw3 = np.repeat((walls[house_w] * light)[None], last - first, 0)
    colour_hw3[(part(v_hw * 4) < 0.2) & (z_w < 16) & (house_w % 2 == 0)] *= np.float32(0.88)  # courses of bricks
    rows, places = np.nonzero(window_hw)
    colour_hw3[rows, places] = GLASS * panes[(pane_w[places] * 7 + storey_hw[rows, places] * 13).astype(int) % 64, None]
    sign_hw = shop_w & (np.abs(v_hw - 2.9) < 0.3) & (part(along_w / 4) < 0.75)
    np.copyto(colour_hw3, brands[house_w] * light, where=sign_hw[..., None])
    mask_hw = (v_hw >= 0) & (v_hw < top_w)
    np.copyto(canvas.image_HW3[first:last, columns], canvas.hazed(colour_hw3, z_w[None, :, None]), where=mask_hw[..., None])
    np.copyto(canvas.labels_HW[first:last, columns], np.where(sign_hw, np.uint8(SIGN), np.uint8(BUILDING)), where=mask_hw)


def paint_objects(canvas: Canvas, rng: np.random.Generator) -> None:
    """What stands and moves in the street, the farthest first."""
    kinds = (
        (paint_tree, 1, 7, 6, 60),
        (paint_vehicle, 2, 7, 7, 55),
        (paint_person, 2, 8, 5, 30),
        (paint_pole, 2, 6, 6, 40),
        (paint_sign, 1, 4, 6, 25),
        (paint_litter, 0, 4, 5, 20),
    )
    plan = [(float(rng.uniform(near, far)), paint) for paint, least, most, near, far in kinds for _ in range(rng.integers(least, most + 1))]
    for z, paint in sorted(plan, key=lambda item: -item[0]):
        paint(canvas, rng, z)


def kerbside(canvas: Canvas, rng: np.random.Generator, inner: float, outer: float) -> float:
    """A place on a pavement: metres right of the road's middle, from `inner` to `outer` of the pavement's width."""
    return float(rng.choice([-1, 1]) * (canvas.road + canvas.walk * rng.uniform(inner, outer)))


def paint_tree(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """A trunk under clumps of leaves, or a bush."""
    leaf, trunk = LEAVES[rng.integers(len(LEAVES))] * np.float32(rng.uniform(0.8, 1.2)), rng.uniform(1.5, 3.2) * (rng.random() < 0.75)
    size = rng.uniform(1.2, 2.4) if trunk else rng.uniform(0.6, 1.2)
    patch = canvas.patch(kerbside(canvas, rng, 0.1, 2.0), z, 2 * size, trunk + 2.6 * size)
    canvas.paint(patch, (np.abs(patch.u) < 0.16) & (patch.v > 0) & (patch.v < trunk + size), (0.28, 0.21, 0.16), VEGETATION, 0.2)
    ragged = smooth(rng, 9, 9, *np.broadcast_shapes(patch.u.shape, patch.v.shape)) * 0.35
    for _ in range(6):
        across, up, radius = rng.uniform(-0.8, 0.8) * size, trunk + rng.uniform(0.4, 1.6) * size, rng.uniform(0.5, 0.95) * size
        far = np.hypot((patch.u - across) / radius, (patch.v - up) / radius)
        canvas.paint(patch, (far + ragged < 0.9) & (patch.v > 0), leaf * np.float32(rng.uniform(0.75, 1.25)), VEGETATION, radius)


def paint_vehicle(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """A car, van or lorry from behind or in front, or a parked one from the side, with its shadow."""
    paint, sideways, tall = PAINTS[rng.integers(len(PAINTS))], rng.random() < 0.25, rng.random() < 0.25
    half, top = (2.1 if sideways else 0.9) * (1.2 if tall else 1), rng.uniform(2.2, 3.4) if tall else rng.uniform(1.35, 1.6)
    reach = canvas.road - half * 0.7
    x = float(rng.choice([-1, 1])) * (reach + rng.uniform(0, 0.5) if rng.random() < 0.5 else rng.uniform(0.3, 0.6) * canvas.road)
    patch = canvas.patch(x, z, half + 0.3, top)
    u, v = np.abs(patch.u), patch.v
    shadow = (u < half + 0.1) & (v > -0.1) & (v < 0.3)
    canvas.image_HW3[patch.rows, patch.columns] *= np.where(shadow, np.float32(0.35), np.float32(1))[..., None]
    belt = top * (0.45 if tall else 0.58)
    narrow = half * (1 - (0.06 if tall else 0.28 if not sideways else 0.4) * np.clip((v - belt) / (top - belt), 0, 1))
    wheels = (np.hypot(u - half * 0.62, v - 0.32) < 0.34) if sideways else (np.abs(u - half * 0.82) < 0.12) & (v < 0.5)
    canvas.paint(patch, wheels & (v > 0), DARK, VEHICLE)
    canvas.paint(patch, (u < narrow) & (v > 0.25) & (v < top), paint, VEHICLE, half * 1.5)
    panes = (u < narrow - 0.12) & (v > belt) & (v < top - 0.12) & ((u > 0.06) | (not sideways))
    canvas.paint(patch, panes, GLASS * rng.uniform(0.7, 1.6), VEHICLE, half)
    if sideways:
        canvas.paint(patch, wheels & (v > 0), DARK, VEHICLE)
    else:
        lamp = (0.7, 0.1, 0.08) if rng.random() < 0.6 else (0.95, 0.93, 0.85)
        canvas.paint(patch, (np.abs(u - half * 0.8) < 0.12) & (v > 0.6) & (v < 0.78), lamp, VEHICLE)
        canvas.paint(patch, (u < 0.26) & (v > 0.42) & (v < 0.54), (0.85, 0.85, 0.8), VEHICLE)


def paint_person(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """Somebody walking, mostly on a pavement."""
    size, stride = rng.uniform(0.85, 1.1), rng.uniform(0.02, 0.28)
    skin = np.array((0.80, 0.62, 0.50), np.float32) * np.float32(rng.uniform(0.4, 1.1))
    coat, trousers = PAINTS[rng.integers(len(PAINTS))], PAINTS[rng.integers(len(PAINTS))] * np.float32(0.6)
    x = kerbside(canvas, rng, 0.1, 0.9) if rng.random() < 0.8 else float(rng.uniform(-1, 1) * canvas.road)
    patch = canvas.patch(x, z, 0.5 * size, 1.8 * size)
    u, v = patch.u / np.float32(size), patch.v / np.float32(size)
    legs = np.abs(np.abs(u) - stride * np.clip(0.9 - v, 0, 1)) < 0.085
    canvas.paint(patch, legs & (v > 0) & (v < 0.9), trousers, PERSON, 0.3)
    arms = (np.abs(np.abs(u) - 0.22 - 0.10 * (1.4 - v)) < 0.055) & (v > 0.8) & (v < 1.42)
    canvas.paint(patch, arms | ((np.abs(u) < 0.22 - 0.06 * np.abs(v - 1.3)) & (v > 0.75) & (v < 1.48)), coat, PERSON, 0.35)
    canvas.paint(patch, (u / 0.10) ** 2 + ((v - 1.62) / 0.14) ** 2 < 1, skin, PERSON, 0.2)
    canvas.paint(patch, ((u / 0.11) ** 2 + ((v - 1.67) / 0.12) ** 2 < 1) & (v > 1.66), DARK * rng.uniform(1, 5), PERSON, 0.2)


def paint_pole(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """A street lamp, or a traffic light over a thinner pole."""
    grey, x = np.full(3, rng.uniform(0.18, 0.6), np.float32), kerbside(canvas, rng, 0.05, 0.35)
    top, half = (rng.uniform(5, 8), rng.uniform(0.07, 0.11)) if rng.random() < 0.7 else (rng.uniform(2.8, 3.4), 0.06)
    patch = canvas.patch(x, z, 1.6, top + 0.3)
    half = max(half, 0.8 * z / canvas.focal)  # never thinner than what the labels can show
    canvas.paint(patch, (np.abs(patch.u) < half) & (patch.v > 0) & (patch.v < top), grey, POLE, half)
    if top > 4:
        inward = -np.sign(x) * patch.u
        canvas.paint(patch, (inward > 0) & (inward < 1.4) & (np.abs(patch.v - top + 0.1) < half), grey, POLE)
    else:
        box = (np.abs(patch.u) < 0.18) & (np.abs(patch.v - top + 0.3) < 0.45)
        canvas.paint(patch, box, DARK, SIGN)
        lamp, colour = rng.integers(3), ((0.9, 0.1, 0.1), (0.95, 0.7, 0.1), (0.1, 0.85, 0.4))
        canvas.paint(patch, np.hypot(patch.u, patch.v - top + 0.58 - 0.28 * lamp) < 0.11, colour[2 - lamp], SIGN)


def paint_sign(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """A traffic sign (disc, triangle or board) on a pole."""
    half, up, shape = rng.uniform(0.32, 0.55), rng.uniform(2.1, 2.8), rng.integers(3)
    rim, inside = ((0.75, 0.08, 0.08), (0.92, 0.92, 0.9)) if rng.random() < 0.6 else ((0.9, 0.9, 0.92), (0.10, 0.25, 0.62))
    patch = canvas.patch(kerbside(canvas, rng, 0.05, 0.4), z, 2 * half, up + 2 * half)
    canvas.paint(patch, (np.abs(patch.u) < max(0.04, 0.8 * z / canvas.focal)) & (patch.v > 0) & (patch.v < up), (0.5, 0.5, 0.5), POLE)
    u, v = np.abs(patch.u) / half, (patch.v - up) / half
    far = (np.hypot(u, v), np.maximum(-1.4 * v, 0.7 * v + 1.25 * u), np.maximum(u / (1 + rng.random()), np.abs(v)))[shape]
    canvas.paint(patch, far < 1, rim, SIGN)
    canvas.paint(patch, far < 0.72, inside, SIGN)
    canvas.paint(patch, (far < 0.6) & (np.abs(v - 0.1) < 0.15), DARK, SIGN)


def paint_litter(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """A bin or a cone: small, and of no class."""
    top, cone = rng.uniform(0.5, 1.1), rng.random() < 0.4
    patch = canvas.patch(kerbside(canvas, rng, -0.1, 0.8), z, 0.4, top)
    colour = np.array((0.9, 0.4, 0.1), np.float32) if cone else PAINTS[rng.integers(len(PAINTS))]
    half = 0.22 * (1.1 - patch.v / top) if cone else 0.28 + 0 * patch.v
    canvas.paint(patch, (np.abs(patch.u) < half) & (patch.v > 0) & (patch.v < top), colour, IGNORED, 0.4)


def paint_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The camera car's own bonnet along the lower edge, without a class."""
    H, W = canvas.labels_HW.shape
    patch = Patch(slice(0, H), slice(0, W), np.linspace(-1, 1, W, dtype=np.float32)[None], np.arange(H, dtype=np.float32)[:, None] / H, 0.5)
    edge = np.float32(1 - rng.uniform(0.05, 0.10)) + 0.06 * patch.u**2
    canvas.paint(patch, patch.v > edge, PAINTS[rng.integers(len(PAINTS))] * rng.uniform(0.6, 1), IGNORED, 1)


def part(x: np.ndarray) -> np.ndarray:
    """The fractional part (much faster than `% 1`)."""
    return x - np.floor(x)


def smooth(rng: np.random.Generator, across: int, down: int, height: int, width: int) -> np.ndarray:
    """Soft noise of unit deviation or less, float32 [height, width], with about `across` x `down` waves whatever the size."""
    grid = rng.standard_normal((down + 1, across + 1), np.float32)
    rows = np.linspace(0, down, height, dtype=np.float32)
    columns = np.linspace(0, across, width, dtype=np.float32)
    above, left = np.minimum(rows.astype(int), down - 1), np.minimum(columns.astype(int), across - 1)
    t_h1, t_w = (rows - above).astype(np.float32)[:, None], (columns - left).astype(np.float32)
    bands_hc = grid[above] * (1 - t_h1) + grid[above + 1] * t_h1
    return bands_hc[:, left] * (1 - t_w) + bands_hc[:, left + 1] * t_w


def photograph(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The uint8 image: each class's roughness, the light's colour, the average over canvas pixels, the sensor's noise."""
    H, W = canvas.labels_HW.shape
    rough_HW = smooth(rng, W // 6, H // 6, H, W) + rng.standard_normal((H, W), np.float32)
    image_HW3 = canvas.image_HW3 * (1 + GRAIN[np.minimum(canvas.labels_HW, 9)] * np.clip(rough_HW, -2.5, 2.5))[..., None]
    halves_hW3 = image_HW3[::OVER] + image_HW3[1::OVER]
    image_hw3 = (halves_hW3[:, ::OVER] + halves_hW3[:, 1::OVER]) * (canvas.tint / OVER**2)
    image_hw3 += rng.standard_normal(image_hw3.shape, np.float32) * np.float32(0.012)
    return (np.clip(image_hw3, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def majority(labels_HW: np.ndarray) -> np.ndarray:
    """The commonest of each 2 x 2 canvas pixels; of two equally common ones the higher id, which stands in front."""
    a, b, c, d = np.sort(np.stack([labels_HW[row::OVER, column::OVER] for row in range(OVER) for column in range(OVER)]), axis=0)
    return np.where((a == b) & (c != d) & (b != c), a, c)
