"""What is counted while the images of a split are predicted, on one rank or several."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.evaluation.inference import Prediction
from pipeline.evaluation.metrics import boundary_means, boundary_scores, confusion_matrix, mean, scores
from pipeline.training.distributed import world

T = TypeVar("T")
PROTOCOLS = ("single_scale", "multi_scale_flip")


@dataclass
class Tally:
    """What is counted of one seed. N images, P protocols, R radii, K classes; a rank fills the rows of its own images."""

    confusion_PKK: NDArray[np.int64]
    neighbours_KK: NDArray[np.int64]
    f_NPRK: NDArray[np.float64]
    present_NPK: NDArray[np.uint8]
    seconds_N: NDArray[np.float64]
    hits_NPK: NDArray[np.int64]
    unions_NPK: NDArray[np.int64]
    labelled_NK: NDArray[np.int64]
    predictions: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # of the images that are drawn
    maps: dict[int, tuple[tuple[int, int], bytes]] = field(default_factory=dict)  # small ones, as `pipeline.evaluation.record` keeps them

    @classmethod
    def empty(cls, images: int, radii: int, classes: int) -> "Tally":
        """Nothing counted."""
        P, K = len(PROTOCOLS), classes
        return cls(
            confusion_PKK=np.zeros((P, K, K), np.int64),
            neighbours_KK=np.zeros((K, K), np.int64),
            f_NPRK=np.zeros((images, P, radii, K)),
            present_NPK=np.zeros((images, P, K), np.uint8),
            seconds_N=np.zeros(images),
            hits_NPK=np.zeros((images, P, K), np.int64),
            unions_NPK=np.zeros((images, P, K), np.int64),
            labelled_NK=np.zeros((images, K), np.int64),
        )

    def add(self, index: int, prediction: Prediction, labels_HW: NDArray[np.uint8], radii: Sequence[int]) -> None:
        """Count one image."""
        K = len(self.neighbours_KK)
        for protocol, ids_HW in enumerate((prediction.single_HW, prediction.multi_HW)):
            if protocol and ids_HW is prediction.single_HW:  # nothing new to count
                self.f_NPRK[index, 1], self.present_NPK[index, 1] = self.f_NPRK[index, 0], self.present_NPK[index, 0]
            else:
                self.f_NPRK[index, protocol], self.present_NPK[index, protocol] = boundary_scores(ids_HW, labels_HW, K, radii)
            counts_KK = confusion_matrix(ids_HW, labels_HW, K)
            self.confusion_PKK[protocol] += counts_KK
            hits_K, labelled_K = counts_KK.diagonal(), counts_KK.sum(1)
            self.hits_NPK[index, protocol], self.labelled_NK[index] = hits_K, labelled_K
            self.unions_NPK[index, protocol] = labelled_K + counts_KK.sum(0) - hits_K
        self.neighbours_KK += neighbours(labels_HW, K)
        self.seconds_N[index] = prediction.seconds

    def gather(self) -> None:
        """Bring together what all ranks have counted; a row of another rank's is zero here, so that sums are exact."""
        if world() == 1:
            return
        sums = (self.confusion_PKK, self.neighbours_KK, self.f_NPRK, self.present_NPK, self.seconds_N)
        for array in (*sums, self.hits_NPK, self.unions_NPK, self.labelled_NK):
            dist.all_reduce(torch.from_numpy(array))
        self.predictions, self.maps = shared(self.predictions), shared(self.maps)

    def speed(self) -> float | None:
        """Images per second of one process; the first image of each, which warms it up, does not count."""
        warm = self.seconds_N[world() :] if len(self.seconds_N) > world() else self.seconds_N
        return len(warm) / warm.sum() if warm.sum() > 0 else None

    def areas(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The confusion matrices PKK, and every image's hits and unions PNK."""
        return self.confusion_PKK, self.hits_NPK.swapaxes(0, 1), self.unions_NPK.swapaxes(0, 1)

    def protocols(self, classes: Sequence[str], radii: Sequence[int]) -> dict[str, Any]:
        """The scores of each protocol."""
        return {
            name: scores(self.confusion_PKK[protocol], classes)
            | {"boundary_f": boundary_means(self.f_NPRK[:, protocol], self.present_NPK[:, protocol] > 0, radii)}
            for protocol, name in enumerate(PROTOCOLS)
        }


def shared(own: dict[int, T]) -> dict[int, T]:
    """What all ranks have, by the image's index."""
    shares: list[dict[int, T]] = [{} for _ in range(world())]
    dist.all_gather_object(shares, own)
    return {index: value for share in shares for index, value in share.items()}


def neighbours(labels_HW: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """How many pairs of 4-neighbours have the labels (k, l): K x K, symmetric, void left out."""
    total = np.zeros(classes * classes, np.int64)
    for one, other in ((labels_HW[:, :-1], labels_HW[:, 1:]), (labels_HW[:-1], labels_HW[1:])):
        apart = (one != other) & (one < classes) & (other < classes)
        total += np.bincount(one[apart].astype(np.int64) * classes + other[apart], minlength=classes * classes)
    pairs_KK = total.reshape(classes, classes)
    return pairs_KK + pairs_KK.T


def adjacent_cosine(weights_KC: Tensor, neighbours_KK: NDArray[np.int64]) -> float | None:
    """E-CRF's Fig. 1: the mean over classes of the cosine between a class's classifier weights and those of its closest neighbour.

    That is the class with which it shares most 4-neighbour label pairs; a class without neighbours is left out.
    """
    unit_KC = normalize(weights_KC.double(), dim=1).numpy()
    cosines = (unit_KC * unit_KC[neighbours_KK.argmax(1)]).sum(1)
    return mean(np.where(neighbours_KK.any(1), cosines, np.nan))
