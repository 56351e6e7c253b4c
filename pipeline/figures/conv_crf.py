"""ConvCRF's figure: the unary, a dense CRF on it, and the trained ConvCRF.

Teichmann and Cipolla: Convolutional CRFs for Semantic Segmentation (BMVC 2019), Fig. 1 (there of the synthetic task, which
`uv run python -m stages.denoise` runs). All three are of one run: the unary are its classifier's logits; FullCRF is mean field with dense
Gaussian kernels and the paper's hand-set constants (preset `conv_crf` of evaluation/dense_crf.py) on the same unary; ConvCRF is its output.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.parts.layers import resize
from pipeline.data.prepared import Prepared
from pipeline.evaluation.dense_crf import dense_crf
from pipeline.evaluation.metrics import VOID
from pipeline.figures import canvas, panels
from pipeline.figures.figure import Figure
from pipeline.figures.material import Run, Shot, classes_of, described, look
from pipeline.settings.presets import PRESETS
from pipeline.settings.schema import Config


def has_conv_crf(config: Config) -> bool:
    """Whether a run ends in a ConvCRF."""
    return config.crf.name == "conv"


@torch.no_grad()
def crfs(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 1, with the unary's confidence, what ConvCRF changed, and the errors."""
    seen = look(run, shot, ["crf.classifier"])
    unary_1Khw = seen.outputs["crf.classifier"].float()
    probabilities_KHW = resize(unary_1Khw, shot.size)[0].softmax(0).cpu().numpy()
    full_KHW = dense_crf(probabilities_KHW, shot.array(), **PRESETS["conv_crf"])
    unary_HW = classes_of(unary_1Khw, shot.size)
    shown = {"unary": unary_HW, "FullCRF on it": full_KHW.argmax(0).astype(np.uint8), "ConvCRF, trained": seen.prediction()}
    sheet = canvas.sheet(2, 5, ("Unary and CRFs", described([run], shot)), shape=shot.shape, scales=[0])
    upper, lower = sheet.panels
    panels.photograph(upper[0], shot.array(), "image")
    panels.segmentation(upper[1], shot.labels_HW, run.prepared.palette, "labels")
    panels.heat(sheet, lower[0], probabilities_KHW.max(0), "the unary's confidence", limits=(0, 1), label="probability")
    panels.changes(lower[1], unary_HW, seen.prediction(), shot.labels_HW, VOID, "what ConvCRF changed")
    for (title, ids_HW), above, below in zip(shown.items(), upper[2:], lower[2:], strict=True):
        panels.segmentation(above, ids_HW, run.prepared.palette, title)
        panels.errors(below, ids_HW, shot.labels_HW, VOID)
    canvas.legend(sheet, run.prepared.classes, run.prepared.palette, [shot.labels_HW, *shown.values()])
    return sheet


def denoised(
    image_HW3: NDArray[np.uint8], labels_HW: NDArray[np.uint8], made: Mapping[str, NDArray[np.uint8]], prepared: Prepared, about: str
) -> canvas.Sheet:
    """Fig. 1 of the synthetic task: the image, the labels, the noisy ones (unary) and what each CRF made of them, errors below."""
    title = ("Denoising of labels", f"{prepared.dataset} · {about}")
    sheet = canvas.sheet(2, 1 + len(made), title, shape=labels_HW.shape[0] / labels_HW.shape[1])
    (first, *upper), (labels, *lower) = sheet.panels
    panels.photograph(first, image_HW3, "image")
    panels.segmentation(labels, labels_HW, prepared.palette, "labels")
    for (name, ids_HW), above, below in zip(made.items(), upper, lower, strict=True):
        panels.segmentation(above, ids_HW, prepared.palette, name)
        panels.errors(below, ids_HW, labels_HW, VOID)
    canvas.legend(sheet, prepared.classes, prepared.palette, [labels_HW, *made.values()])
    return sheet


CRFS = Figure(
    source="Teichmann and Cipolla, ConvCRF (BMVC 2019), Fig. 1",
    caption="The classifier's logits alone (unary), a dense CRF with the paper's constants on them (FullCRF), and the trained "
    "ConvCRF. Below: how sure the unary is (the probability of its best class), what ConvCRF changed, and the errors. The paper's "
    "figure is of its synthetic task, which `uv run python -m stages.denoise` runs.",
    fits=has_conv_crf,
    needs="crf conv",
    of_image=crfs,
)
