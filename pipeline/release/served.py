"""What MLflow loads of a registered model: images in, label maps out. It imports nothing of MLflow.

model = mlflow.pyfunc.load_model("models:/ecrf/1")
ids_HW = model.predict(image_HW3)
"""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.ground.errors import UserError
from pipeline.release.predictor import Predictor


class Served:
    """A predictor behind MLflow's interface."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Label maps, uint8: HW of one image, NHW of an array of several, a list of them for a list.

        An image is an array HW3 of integers from 0 to 255, a path, a file's bytes, or these as "data:image/png;base64,...".
        UserError: anything else.
        """
        if isinstance(model_input, str | Path | bytes):
            return self.of_file(model_input)
        if type(model_input).__name__ == "DataFrame":  # one column of images, as a server's request has them; pandas comes with MLflow
            model_input = [row[0] for row in model_input.to_numpy()]
        array = model_input if isinstance(model_input, np.ndarray) else as_array(model_input)
        if array is not None and array.dtype.kind in "iu":
            if array.ndim == 3:
                return self.predictor(picture(array))
            if array.ndim == 4:
                return np.stack([self.predictor(picture(image)) for image in array])
        if isinstance(model_input, np.ndarray | list | tuple) and (array is None or array.dtype.kind in "OSU"):
            return [labels for entry in model_input for labels in [self.predict(entry)] if isinstance(labels, np.ndarray)]
        shape = "" if array is None else f" of {array.dtype} {array.shape}"
        raise UserError(f"an image is an array of height, width, 3 of integers, or a path, not {type(model_input).__name__}{shape}")

    def of_file(self, file: str | Path | bytes) -> NDArray[np.uint8]:
        """The label map of an image file: its path, its bytes, or these in a data URL."""
        if isinstance(file, str) and file.startswith("data:"):
            file = unpacked(file)
        if not isinstance(file, bytes):
            return self.predictor(file)
        with tempfile.NamedTemporaryFile() as copy:
            copy.write(file)
            copy.flush()
            return self.predictor(copy.name)


def unpacked(url: str) -> bytes:
    """The content of "data:image/png;base64,..."; UserError for another."""
    head, _, content = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise UserError(f"{url[:40]}... is no image as data:image/png;base64,...") from None


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
