"""What a prediction is worth: the confusion matrix, what follows from it, and boundary F over a data set."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.boundary import boundary_f, boundary_scores

__all__ = ["boundary_f", "boundary_means", "boundary_scores", "confusion_matrix", "mean_scores", "scores"]

VOID = 255  # the label of ignored pixels


@overload
def confusion_matrix(prediction_BHW: Tensor, labels_BHW: Tensor, num_classes: int, *, ignore_index: int = 255) -> Tensor: ...
@overload
def confusion_matrix(prediction_BHW: NDArray, labels_BHW: NDArray, num_classes: int, *, ignore_index: int = 255) -> NDArray[np.int64]: ...


def confusion_matrix(
    prediction_BHW: NDArray | Tensor, labels_BHW: NDArray | Tensor, num_classes: int, *, ignore_index: int = 255
) -> NDArray[np.int64] | Tensor:
    """Count pixels by (label, prediction): KK int64, rows are labels, ignored labels left out.

    Tensors (on any device) give a tensor, arrays an array; any shape, equal for both. Raises ValueError for an id outside
    the classes, which would otherwise be counted in another class's place.
    """
    predicted, labels = as_tensor(prediction_BHW), as_tensor(labels_BHW)
    if predicted.shape != labels.shape:
        raise ValueError(f"prediction {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape")
    valid = labels != ignore_index
    labels, predicted = checked(labels[valid], num_classes, "label"), checked(predicted[valid], num_classes, "prediction")
    counts_KK = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    return counts_KK if isinstance(prediction_BHW, Tensor) else counts_KK.numpy()


def as_tensor(mask: NDArray | Tensor) -> Tensor:
    """The mask as a tensor; an array that may not be written to, or that runs backwards, is copied."""
    if isinstance(mask, Tensor):
        return mask
    array = np.require(mask, requirements=["C", "W"])
    # An axis of one element counts as in order even where it runs backwards.
    return torch.from_numpy(array if min(array.strides, default=0) >= 0 else array.copy())


def checked(ids: Tensor, num_classes: int, what: str) -> Tensor:
    """Class ids as int64, after refusing those that are no class."""
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"a {what} is a class id, not {ids.dtype}")
    ids = ids.long()
    if ids.numel() and (ids.min() < 0 or ids.max() >= num_classes):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{what} {int(wrong)} is outside the {num_classes} classes")
    return ids


def scores(confusion_KK: NDArray | Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """miou, pixel_accuracy, mean_accuracy and iou by class, from counts of the whole data set.

    A class without union (in neither labels nor predictions) has the IoU None and is left out of miou; one without labels is
    left out of mean_accuracy.
    """
    counts = np.asarray(confusion_KK, np.float64)
    hits, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = share(hits, labelled + predicted - hits)
    return {
        "miou": mean(iou),
        "pixel_accuracy": mean(share(hits.sum(keepdims=True), counts.sum(keepdims=True).ravel())),
        "mean_accuracy": mean(share(hits, labelled)),
        "iou": {name: number(value) for name, value in zip(classes, iou, strict=True)},
    }


def boundary_means(f_NRK: NDArray[np.float64], present_NK: NDArray[np.bool_], radii: Sequence[int]) -> dict[str, Any]:
    """Boundary F of N images under both conventions, by radius in pixels.

    `gscnn`: each class over all images, 1 where it is in neither mask, then over classes. `present`: each class over the images
    where it is in either mask, then over the classes that are anywhere.
    """
    images = present_NK.sum(0)
    means = {}
    for index, radius in enumerate(radii):
        f_NK = f_NRK[:, index]
        means[str(radius)] = {
            "present": mean(share(np.where(present_NK, f_NK, 0.0).sum(0), images)),
            "gscnn": number(f_NK.mean(0).mean()) if len(f_NK) else None,
        }
    return means


def share(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """The share of `part` in `whole`, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what is not nan; None where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def number(value: float) -> float | None:
    """A float for JSON: nan is None."""
    return None if np.isnan(value) else float(value)


def mean_scores(seeds: Sequence[Any]) -> Any:
    """The mean over seeds of nested dicts of numbers; None counts for nothing, and stays where no seed has a number."""
    if isinstance(seeds[0], dict):
        return {key: mean_scores([values[key] for values in seeds]) for key in seeds[0]}
    return mean(np.array([value for value in seeds if value is not None], np.float64))
