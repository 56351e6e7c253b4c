"""CAR's figures: how alike pixels' features are, and how much classes depend on one another.

Huang, Kang, Chen, Zhe, Jia, Bao, He: CAR (ECCV 2022); Fig. 4.4 and 4.5 of Huang's thesis (UTS, 2022). With z_p the features that CAR
regularises (those before the classifier for a run without it) and mu_c their mean over the pixels of class c,

    relation of pixels p, q    z_p . z_q        dependency of classes c, c'    softmax over c' of mu_c . mu_c' / sqrt C  (equation 4.4)

The thesis takes centres over the whole test set: here over `figures.sample` images of the split. Classes without pixels have none.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses.car import labels_at
from models.parts.layers import size_of
from pipeline.evaluation.metrics import VOID
from pipeline.figures import canvas, panels
from pipeline.figures.ecrf import name_at
from pipeline.figures.figure import Figure, is_plain
from pipeline.figures.material import Run, Sample, Shot, described, look
from pipeline.settings.schema import Config


def is_regularised(config: Config) -> bool:
    """Whether a run was trained with CAR's terms."""
    return config.loss.name == "car"


def relation(features_CHW: Tensor, place: tuple[int, int]) -> NDArray[np.float32]:
    """The dot products of the features at `place` (row, column) with those of every pixel: HW."""
    return (features_CHW * features_CHW[:, place[0], place[1], None, None]).sum(0).float().cpu().numpy()


def relations(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 4.4: for each run the marked pixel's relation to all pixels, the prediction and its errors."""
    runs = [one for one in (baseline, run) if one is not None]
    sheet = canvas.sheet(len(runs), 4, ("Relation of one pixel to all", described(runs, shot)), shape=shot.shape, scales=[1])
    shown = [shot.labels_HW]
    for number, (one, row) in enumerate(zip(runs, sheet.panels, strict=True)):
        seen = look(one, shot, ["projection"])
        features_CHW = seen.outputs["projection"][0][0]
        if number == 0:
            panels.photograph(row[0], shot.array(), f"image; the pixel is of {name_at(run, shot)}")
            panels.mark(row[0], shot.pixel)
        else:
            panels.segmentation(row[0], shot.labels_HW, run.prepared.palette, "labels")
        similar_hw = relation(features_CHW, shot.at(size_of(features_CHW)))
        panels.heat(sheet, row[1], similar_hw, f"{one.config.name}: z · z of the pixel", size=shot.size, label="dot product")
        panels.mark(row[1], shot.pixel)
        panels.segmentation(row[2], seen.prediction(), run.prepared.palette, f"{one.config.name}: prediction")
        panels.errors(row[3], seen.prediction(), shot.labels_HW, VOID)
        shown.append(seen.prediction())
    canvas.legend(sheet, run.prepared.classes, run.prepared.palette, shown)
    return sheet


def centres(run: Run, sample: Sample) -> tuple[Tensor, NDArray[np.int64]]:
    """The mean features KC of each class over the sample, 0 where it has no pixel, and its pixels K; float64."""
    classes = len(run.prepared.classes)
    sums_KC, counts_K = torch.zeros(classes, 1, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    for shot in sample.shots():
        features_CHW = look(run, shot, ["projection"], unary=True).outputs["projection"][0][0].double().cpu()
        labels_HW = labels_at(torch.from_numpy(shot.labels_HW.astype(np.int64))[None], size_of(features_CHW))[0]
        own_NK = labels_HW.flatten()[:, None] == torch.arange(classes)
        sums_KC = sums_KC + own_NK.double().T @ features_CHW.flatten(1).T
        counts_K += own_NK.sum(0)
    return sums_KC / counts_K.clamp(min=1)[:, None], counts_K.long().numpy()


def dependency(centres_KC: Tensor, counts_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Equation 4.4 over the classes that have pixels; rows and columns of the others are NaN: KK."""
    found = np.flatnonzero(counts_K)
    some_MC = centres_KC[torch.from_numpy(found)]
    result_KK = np.full((len(counts_K), len(counts_K)), np.nan)
    result_KK[np.ix_(found, found)] = (some_MC @ some_MC.T / math.sqrt(centres_KC.shape[1])).softmax(1).numpy()
    return result_KK


def on_others(dependency_KK: NDArray[np.float64]) -> float:
    """The mean over classes of what they depend on other classes."""
    return float(1 - np.nanmean(np.diag(dependency_KK)))


def dependencies(run: Run, baseline: Run | None, sample: Sample) -> canvas.Sheet:
    """Fig. 4.5, of the run and of its baseline. ValueError: no class has a pixel."""
    classes = run.prepared.classes
    runs = [one for one in (baseline, run) if one is not None]
    sheet = panels.matrices(len(runs), classes, ("Dependency of classes", described(runs, sample)))
    for one, panel in zip(runs, sheet.panels[0], strict=True):
        centres_KC, counts_K = centres(one, sample)
        if not counts_K.any():
            raise ValueError(f"no pixel of {sample.title} has a label")
        values_KK = dependency(centres_KC, counts_K)
        heading = f"{one.config.name}: {on_others(values_KK):.3f} on others"
        panels.matrix(sheet, panel, values_KK, classes, heading, limits=(0, 1), label="share of the row")
    return sheet


RELATIONS = Figure(
    source="Huang et al., CAR (ECCV 2022); Huang, thesis (UTS 2022), Fig. 4.4",
    caption="The dot products of the marked pixel's features with those of every pixel, without CAR and with it, and what each "
    "predicts. Light is similar; features of two runs have no common unit, so each map has its own scale. With CAR the light "
    "is to stay within the pixel's own class.",
    fits=is_regularised,
    needs="loss car",
    of_image=relations,
    beside=is_plain,
)

DEPENDENCIES = Figure(
    source="Huang et al., CAR (ECCV 2022); Huang, thesis (UTS 2022), Fig. 4.5",
    caption="For each class (row) the softmax over all classes (columns) of the scaled dot products of their mean features "
    "(equation 4.4). A light diagonal is a class that depends on itself alone; light beside it is dependency on others, "
    "whose mean over the classes stands above. Classes without pixels in the sample are left white.",
    fits=is_regularised,
    needs="loss car",
    of_sample=dependencies,
    beside=is_plain,
)
