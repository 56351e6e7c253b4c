"""What MLflow loads of a registered model: images in, label maps out. It imports nothing of MLflow.

model = mlflow.pyfunc.load_model("models:/ecrf/1")
ids_HW = model.predict(image_HW3)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError
from pipeline.predictor import Predictor


class Served:
    """A predictor behind MLflow's interface."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Label maps, uint8: HW of one image, NHW of an array of several, a list of them for a list.

        An image is an array HW3 of integers from 0 to 255, or a path. UserError: anything else.
        """
        if isinstance(model_input, str | Path):
            return self.predictor(model_input)
        if hasattr(model_input, "columns"):  # a table, as from a server's request: one column of images or paths
            model_input = [row[0] for row in model_input.to_numpy()]
        array = model_input if isinstance(model_input, np.ndarray) else as_array(model_input)
        if array is not None and array.dtype.kind in "iu":
            if array.ndim == 3:
                return self.predictor(picture(array))
            if array.ndim == 4:
                return np.stack([self.predictor(picture(image)) for image in array])
        if isinstance(model_input, np.ndarray | list | tuple) and (array is None or array.dtype.kind in "OU"):
            return [labels for entry in model_input for labels in [self.predict(entry)] if isinstance(labels, np.ndarray)]
        shape = "" if array is None else f" of {array.dtype} {array.shape}"
        raise UserError(f"an image is an array of height, width, 3 of integers, or a path, not {type(model_input).__name__}{shape}")


def as_array(values: Sequence[Any]) -> NDArray | None:
    """Nested lists as an array, as JSON has an image; None for images of several sizes, and paths."""
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    return array if array.dtype.kind in "iuf" else None


def picture(image_HW3: NDArray) -> Image.Image:
    """An array as an image; UserError for another shape or values beyond 8 bits."""
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or not image_HW3.size:
        raise UserError(f"an image is height, width, 3, not {image_HW3.shape}")
    if image_HW3.min() < 0 or image_HW3.max() > 255:
        raise UserError("an image's values are from 0 to 255")
    return Image.fromarray(image_HW3.astype(np.uint8))


def _load_pyfunc(path: str) -> Served:
    """MLflow's entry: `path` is the exported folder."""
    return Served(Predictor.load(path))
