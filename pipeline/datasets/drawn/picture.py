"""A scene's two arrays: its plan is painted far to near and photographed, and each pixel's commonest class."""

import numpy as np

from pipeline.datasets.drawn.canvas import OVER, Canvas
from pipeline.datasets.drawn.noise import stretched, waves
from pipeline.datasets.drawn.paint_setting import paint_ground, paint_houses, paint_sky, paint_skyline
from pipeline.datasets.drawn.paint_things import paint_bonnet, paint_thing
from pipeline.datasets.drawn.plan import plan

GRAIN = np.array([0.01, 0.05, 0.06, 0.06, 0.30, 0.02, 0.06, 0.04, 0.02, 0.04], np.float32)  # roughness by class, void last


def scene(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image [height, width, 3] and labels [height, width] (255: no class), both uint8, a pure function of the arguments."""
    rng = np.random.default_rng((seed, index))
    planned = plan(rng)
    canvas = Canvas(planned.street, height, width)
    paint_sky(canvas, planned.sky)
    paint_skyline(canvas, planned.skyline)
    paint_ground(canvas, planned.ground)
    for row in planned.houses:
        paint_houses(canvas, row)
    for thing in planned.things:
        paint_thing(canvas, thing)
    if planned.bonnet:
        paint_bonnet(canvas, planned.bonnet)
    return photograph(canvas, rng), majority(canvas.labels_HW)


def photograph(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The uint8 image: each class's roughness, the light's colour, the average over canvas pixels, the sensor's noise."""
    H, W = canvas.labels_HW.shape
    rough_HW = stretched(waves(rng, W // 6, H // 6), H, W) + rng.standard_normal((H, W), np.float32)
    image_HW3 = canvas.image_HW3 * (1 + GRAIN[np.minimum(canvas.labels_HW, 9)] * np.clip(rough_HW, -2.5, 2.5))[..., None]
    halves_hW3 = image_HW3[::OVER] + image_HW3[1::OVER]
    image_hw3 = (halves_hW3[:, ::OVER] + halves_hW3[:, 1::OVER]) * (canvas.street.tint / OVER**2)
    image_hw3 += rng.standard_normal(image_hw3.shape, np.float32) * np.float32(0.012)
    return (np.clip(image_hw3, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def majority(labels_HW: np.ndarray) -> np.ndarray:
    """The commonest of each 2 x 2 canvas pixels; of two equally common ones the higher id, which stands in front."""
    a, b, c, d = np.sort(np.stack([labels_HW[row::OVER, column::OVER] for row in range(OVER) for column in range(OVER)]), axis=0)
    return np.where((a == b) & (c != d) & (b != c), a, c)
