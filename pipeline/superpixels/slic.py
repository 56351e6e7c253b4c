"""SLIC superpixels of an image.

Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods", PAMI 2012. k-means over (Lab
colour, position) where `compactness` weighs position; SLICO adapts that weight to each superpixel. scikit-image computes
both. Every superpixel is connected, and labels count from 0.
"""

import numpy as np

from pipeline.ground.errors import UserError
from pipeline.settings.schema import SuperpixelSet

VERSION = 1  # of the maps: to be raised with every change of this file that changes them
MOST = 65535  # labels that 16 bits hold


def label_map(image_HW3: np.ndarray, settings: SuperpixelSet) -> np.ndarray:
    """The int32 [H, W] superpixel labels 0..n-1 of a uint8 RGB image.

    Raises UserError for more superpixels than 16 bits hold.
    """
    from skimage.segmentation import slic  # 1.4 s, and only this function needs it

    labels_HW = slic(
        image_HW3,
        n_segments=settings.segments,
        compactness=settings.compactness,
        sigma=settings.sigma,
        slic_zero=settings.algorithm == "slico",
        start_label=0,
        enforce_connectivity=True,
        channel_axis=-1,
    ).astype(np.int32)
    if labels_HW.max() >= MOST:
        raise UserError(f"{labels_HW.max() + 1} superpixels are more than the {MOST} that a map can hold: ask for fewer segments")
    return labels_HW
