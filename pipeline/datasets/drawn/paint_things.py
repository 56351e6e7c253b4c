"""What stands and moves in a street, painted, and the camera car's bonnet before it."""

import numpy as np

from pipeline.datasets import IGNORED
from pipeline.datasets.drawn.canvas import PERSON, POLE, SIGN, VEGETATION, VEHICLE, Canvas, Patch
from pipeline.datasets.drawn.colours import DARK
from pipeline.datasets.drawn.noise import stretched
from pipeline.datasets.drawn.setting import Bonnet
from pipeline.datasets.drawn.things import Litter, Person, Pole, Sign, Thing, Tree, Vehicle


def paint_thing(canvas: Canvas, thing: Thing) -> None:
    """A thing of any kind."""
    match thing:
        case Tree():
            paint_tree(canvas, thing)
        case Vehicle():
            paint_vehicle(canvas, thing)
        case Person():
            paint_person(canvas, thing)
        case Pole():
            paint_pole(canvas, thing)
        case Sign():
            paint_sign(canvas, thing)
        case Litter():
            paint_litter(canvas, thing)


def paint_tree(canvas: Canvas, tree: Tree) -> None:
    """A trunk under clumps of leaves, or a bush."""
    patch = canvas.patch(tree.x, tree.z, 2 * tree.size, tree.trunk + 2.6 * tree.size)
    trunk = (np.abs(patch.u) < 0.16) & (patch.v > 0) & (patch.v < tree.trunk + tree.size)
    canvas.paint(patch, trunk, (0.28, 0.21, 0.16), VEGETATION, 0.2)
    ragged = stretched(tree.ragged, *np.broadcast_shapes(patch.u.shape, patch.v.shape)) * 0.35
    for clump in tree.clumps:
        far = np.hypot((patch.u - clump.across) / clump.radius, (patch.v - clump.up) / clump.radius)
        canvas.paint(patch, (far + ragged < 0.9) & (patch.v > 0), clump.colour, VEGETATION, clump.radius)


def paint_vehicle(canvas: Canvas, vehicle: Vehicle) -> None:
    """A car, van or lorry from behind or in front, or a parked one from the side, with its shadow."""
    half, top, sideways = vehicle.half, vehicle.top, vehicle.sideways
    patch = canvas.patch(vehicle.x, vehicle.z, half + 0.3, top)
    u, v = np.abs(patch.u), patch.v
    shadow = (u < half + 0.1) & (v > -0.1) & (v < 0.3)
    canvas.image_HW3[patch.rows, patch.columns] *= np.where(shadow, np.float32(0.35), np.float32(1))[..., None]
    belt = top * (0.45 if vehicle.tall else 0.58)
    narrow = half * (1 - (0.06 if vehicle.tall else 0.28 if not sideways else 0.4) * np.clip((v - belt) / (top - belt), 0, 1))
    wheels = (np.hypot(u - half * 0.62, v - 0.32) < 0.34) if sideways else (np.abs(u - half * 0.82) < 0.12) & (v < 0.5)
    canvas.paint(patch, wheels & (v > 0), DARK, VEHICLE)
    canvas.paint(patch, (u < narrow) & (v > 0.25) & (v < top), vehicle.paint, VEHICLE, half * 1.5)
    panes = (u < narrow - 0.12) & (v > belt) & (v < top - 0.12) & ((u > 0.06) | (not sideways))
    canvas.paint(patch, panes, vehicle.panes, VEHICLE, half)
    if vehicle.lamps is None:
        canvas.paint(patch, wheels & (v > 0), DARK, VEHICLE)
    else:
        canvas.paint(patch, (np.abs(u - half * 0.8) < 0.12) & (v > 0.6) & (v < 0.78), vehicle.lamps, VEHICLE)
        canvas.paint(patch, (u < 0.26) & (v > 0.42) & (v < 0.54), (0.85, 0.85, 0.8), VEHICLE)


def paint_person(canvas: Canvas, person: Person) -> None:
    """Somebody walking, mostly on a pavement."""
    patch = canvas.patch(person.x, person.z, 0.5 * person.size, 1.8 * person.size)
    u, v = patch.u / np.float32(person.size), patch.v / np.float32(person.size)
    legs = np.abs(np.abs(u) - person.stride * np.clip(0.9 - v, 0, 1)) < 0.085
    canvas.paint(patch, legs & (v > 0) & (v < 0.9), person.trousers, PERSON, 0.3)
    arms = (np.abs(np.abs(u) - 0.22 - 0.10 * (1.4 - v)) < 0.055) & (v > 0.8) & (v < 1.42)
    canvas.paint(patch, arms | ((np.abs(u) < 0.22 - 0.06 * np.abs(v - 1.3)) & (v > 0.75) & (v < 1.48)), person.coat, PERSON, 0.35)
    canvas.paint(patch, (u / 0.10) ** 2 + ((v - 1.62) / 0.14) ** 2 < 1, person.skin, PERSON, 0.2)
    canvas.paint(patch, ((u / 0.11) ** 2 + ((v - 1.67) / 0.12) ** 2 < 1) & (v > 1.66), person.hair, PERSON, 0.2)


def paint_pole(canvas: Canvas, pole: Pole) -> None:
    """A street lamp, or a traffic light over a thinner pole."""
    top, patch = pole.top, canvas.patch(pole.x, pole.z, 1.6, pole.top + 0.3)
    half = max(pole.half, 0.8 * pole.z / canvas.focal)  # never thinner than what the labels can show
    canvas.paint(patch, (np.abs(patch.u) < half) & (patch.v > 0) & (patch.v < top), pole.grey, POLE, half)
    if pole.lit is None:
        inward = -np.sign(pole.x) * patch.u
        canvas.paint(patch, (inward > 0) & (inward < 1.4) & (np.abs(patch.v - top + 0.1) < half), pole.grey, POLE)
    else:
        box = (np.abs(patch.u) < 0.18) & (np.abs(patch.v - top + 0.3) < 0.45)
        canvas.paint(patch, box, DARK, SIGN)
        colour = ((0.1, 0.85, 0.4), (0.95, 0.7, 0.1), (0.9, 0.1, 0.1))[pole.lit]
        up = patch.v - top + 0.58 - np.float64(0.28 * pole.lit)  # in float64: in float32, pixels on the rim could fall otherwise
        canvas.paint(patch, np.hypot(patch.u, up) < 0.11, colour, SIGN)


def paint_sign(canvas: Canvas, sign: Sign) -> None:
    """A traffic sign (disc, triangle or board) on a pole."""
    half, up = sign.half, sign.up
    patch = canvas.patch(sign.x, sign.z, 2 * half, up + 2 * half)
    canvas.paint(patch, (np.abs(patch.u) < max(0.04, 0.8 * sign.z / canvas.focal)) & (patch.v > 0) & (patch.v < up), (0.5, 0.5, 0.5), POLE)
    u, v = np.abs(patch.u) / half, (patch.v - up) / half
    far = (np.hypot(u, v), np.maximum(-1.4 * v, 0.7 * v + 1.25 * u), np.maximum(u / sign.wide, np.abs(v)))[sign.shape]
    canvas.paint(patch, far < 1, sign.rim, SIGN)
    canvas.paint(patch, far < 0.72, sign.inside, SIGN)
    canvas.paint(patch, (far < 0.6) & (np.abs(v - 0.1) < 0.15), DARK, SIGN)


def paint_litter(canvas: Canvas, litter: Litter) -> None:
    """A bin or a cone: small, and of no class."""
    patch = canvas.patch(litter.x, litter.z, 0.4, litter.top)
    half = 0.22 * (1.1 - patch.v / litter.top) if litter.cone else 0.28 + 0 * patch.v
    canvas.paint(patch, (np.abs(patch.u) < half) & (patch.v > 0) & (patch.v < litter.top), litter.colour, IGNORED, 0.4)


def paint_bonnet(canvas: Canvas, bonnet: Bonnet) -> None:
    """The camera car's own bonnet along the lower edge, without a class."""
    H, W = canvas.labels_HW.shape
    patch = Patch(slice(0, H), slice(0, W), np.linspace(-1, 1, W, dtype=np.float32)[None], np.arange(H, dtype=np.float32)[:, None] / H, 0.5)
    edge = np.float32(1 - bonnet.share) + 0.06 * patch.u**2
    canvas.paint(patch, patch.v > edge, bonnet.colour, IGNORED, 1)
