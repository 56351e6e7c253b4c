"""What stands and moves in the street, painted, and the camera car's bonnet before it."""

import numpy as np

from pipeline.datasets import IGNORED
from pipeline.datasets.drawn.canvas import PERSON, POLE, SIGN, VEGETATION, VEHICLE, Canvas, Patch
from pipeline.datasets.drawn.colours import DARK, GLASS, LEAVES, PAINTS
from pipeline.datasets.drawn.noise import smooth


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
