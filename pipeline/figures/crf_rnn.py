"""CRF-RNN's figure: the label compatibility that was learned.

Zheng et al.: Conditional Random Fields as Recurrent Neural Networks (ICCV 2015), Fig. 5: mu(i, j) is the penalty for label i where
a similar pixel has label j; it starts as Potts' model, -1 on the diagonal and 0 elsewhere. Our C is added where the paper subtracts, so
mu = -C (models/crf/mean_field.py); ConvCRF's +C adds M + C M, so there mu = -(1 + C). Beside it the change from its start, which is
small after a short training.
"""

import math

import numpy as np
from numpy.typing import NDArray

from models.segmenter import Segmenter
from pipeline.figures import canvas, panels
from pipeline.figures.figure import Figure
from pipeline.figures.material import Run, Sample
from pipeline.settings.schema import Config


def learns_compatibility(config: Config) -> bool:
    """Whether a run's crf has a learned label compatibility."""
    return config.crf.name == "mean_field" or (config.crf.name == "conv" and bool(config.crf.options.get("compatibility", False)))


def penalties(model: Segmenter, crf: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The penalties mu (KK) as they were learned, and as they started."""
    learned_KK = model.get_submodule("crf.field").get_parameter("compatibility").detach().double().cpu().numpy()
    identity_KK = np.eye(len(learned_KK))
    if crf == "mean_field":
        return -learned_KK, -identity_KK
    return -(identity_KK + learned_KK), -(identity_KK + 0.1 * math.sqrt(2 / len(learned_KK)))


def compatibility(run: Run, baseline: Run | None, sample: Sample) -> canvas.Sheet:
    """Fig. 5, and how far training has come."""
    classes = run.prepared.classes
    learned_KK, started_KK = penalties(run.model, run.config.crf.name)
    sheet = panels.matrices(2, classes, ("Learned label compatibility", f"{run.prepared.dataset} · {run.title}"))
    shown = ((learned_KK, "penalty μ(row, column)", "penalty"), (learned_KK - started_KK, "change since training started", "change"))
    for panel, (values_KK, title, label) in zip(sheet.panels[0], shown, strict=True):
        most = max(float(np.abs(values_KK).max()), 1e-6)  # less is rounding
        panels.matrix(sheet, panel, values_KK, classes, title, colours=canvas.DIVERGING, limits=(-most, most), label=label)
    return sheet


COMPATIBILITY = Figure(
    source="Zheng et al., CRF-RNN (ICCV 2015), Fig. 5",
    caption="The penalty for a label (row) where a similar pixel has another (column), as learned, and its change since training "
    "started: from Potts' model (-1 on the diagonal, else 0), with ConvCRF's +C from the same less a small constant. A negative "
    "penalty is a reward. Classes that appear together are to get low ones.",
    fits=learns_compatibility,
    needs="crf mean_field, or crf conv with compatibility",
    of_sample=compatibility,
)
