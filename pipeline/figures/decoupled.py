"""Decoupled supervision's figures: the body, the edge and both merged, and the flow that makes the body.

Li et al.: Improving Semantic Segmentation via Decoupled Body and Edge Supervision (ECCV 2020). Fig. 5: principal components of F_body, of
F - F_body and of the merged feature edge + up(body), each as red, green and blue, and the edge prior where sigmoid(b) > 0.8.
Fig. 6: the flow field. It is given in pixels of the image: the network's own unit, flow / (W, H) of a map that reaches from -1 to 1, is
flow (W - 1) / 2W pixels of the feature map. An arrow points to where the body takes its features from.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.heads.decoupled import Decoupled
from models.parts.layers import resize, size_of
from pipeline.figures import canvas, panels
from pipeline.figures.figure import Figure
from pipeline.figures.material import Run, Shot, described, look
from pipeline.settings.schema import Config

THRESHOLD = 0.8  # of an edge's probability: t_b of the paper
ARROWS = 24  # along the image's longer side, at most


def is_decoupled(config: Config) -> bool:
    """Whether a run splits features into body and edge."""
    return config.head.name == "decoupled"


def components(features_CHW: Tensor) -> tuple[NDArray[np.float64], float]:
    """The first three principal components over the pixels as RGB in [0, 1] (HW3), and their share of the variance.

    Each component runs from its 1st to its 99th percentile; its sign makes its largest loading positive, so that equal maps look equal.
    """
    C, H, W = features_CHW.shape
    rows_NC = features_CHW.double().cpu().flatten(1).T.numpy()
    centred_NC = rows_NC - rows_NC.mean(0)
    _, scale_M, axes_MC = np.linalg.svd(centred_NC, full_matrices=False)
    axes_3C = np.zeros((3, C))
    axes_3C[: min(3, len(axes_MC))] = axes_MC[:3]
    axes_3C *= np.where(axes_3C[np.arange(3), np.abs(axes_3C).argmax(1)] < 0, -1, 1)[:, None]
    scores_N3 = centred_NC @ axes_3C.T
    low_3, high_3 = np.percentile(scores_N3, (1, 99), axis=0)
    total = float((scale_M**2).sum())
    share = float((scale_M[:3] ** 2).sum()) / total if total else 0.0
    return np.clip((scores_N3 - low_3) / np.maximum(high_3 - low_3, 1e-12), 0, 1).reshape(H, W, 3), share


@torch.no_grad()
def body_edge(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 5, with the image and the probability of edges."""
    head = run.model.head
    assert isinstance(head, Decoupled)
    seen = look(run, shot, ["head.body_edge", "head.join", "head.edge"])
    body_CHW, rest_CHW = (part[0] for part in seen.outputs["head.body_edge"])
    joined_CHW = seen.inputs["head.join"][0][0]
    merged_CHW = joined_CHW[len(joined_CHW) // 2 :]  # beside F itself, which comes first
    edge_11hw = head.edge_classifier(seen.outputs["head.edge"]).sigmoid()
    edge_HW = resize(edge_11hw.float(), shot.size, align_corners=True)[0, 0].cpu().numpy()
    sheet = canvas.sheet(2, 3, ("Body and edge", described([run], shot)), shape=shot.shape, scales=[1])
    (first, body, rest), (merged, probability, prior) = sheet.panels
    panels.photograph(first, shot.array(), "image")
    for panel, values_CHW, letter in (
        (body, body_CHW, "(a) F_body"),
        (rest, rest_CHW, "(b) F - F_body"),
        (merged, merged_CHW, "(c) merged"),
    ):
        colours_HW3, share = components(values_CHW)
        panels.picture(panel, colours_HW3, f"{letter}, {100 * share:.0f} % of the variance", shot.size)
    panels.heat(sheet, probability, edge_HW, "predicted edges", limits=(0, 1), label="probability of an edge")
    panels.heat(sheet, prior, (edge_HW > THRESHOLD).astype(float), f"(d) edge prior: above {THRESHOLD}", limits=(0, 1), bar=False)
    return sheet


def displacement(flow_2HW: Tensor) -> NDArray[np.float64]:
    """The network's flow in pixels of its own map: (x, y) of where each pixel's body is taken from, less its own place."""
    lengths = flow_2HW.new_tensor([flow_2HW.shape[2], flow_2HW.shape[1]])[:, None, None]
    return (flow_2HW * (lengths - 1) / (2 * lengths)).double().cpu().numpy()


def flow(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 6: arrows on the image, length and direction."""
    flow_2hw = look(run, shot, ["head.body_edge.flow"]).outputs["head.body_edge.flow"][0]
    h, w = size_of(flow_2hw)
    moved_2hw = displacement(flow_2hw) * np.array([shot.size[1] / w, shot.size[0] / h])[:, None, None]
    length_hw = np.hypot(*moved_2hw)
    angle_hw = np.degrees(np.arctan2(-moved_2hw[1], moved_2hw[0]))  # up is positive, as one sees it
    sheet = canvas.sheet(1, 3, ("Flow field", described([run], shot)), shape=shot.shape, scales=(1, 2))
    arrows, length, direction = sheet.panels[0]
    step = max(1, -(-max(h, w) // ARROWS))
    rows, columns = np.arange(step // 2, h, step), np.arange(step // 2, w, step)
    x, y = (columns + 0.5) * shot.size[1] / w, (rows + 0.5) * shot.size[0] / h
    u, v = (part_hw[np.ix_(rows, columns)] for part_hw in moved_2hw)
    longest = max(float(np.percentile(np.hypot(u, v), 98)), 1e-6)
    scale = longest / (step * shot.size[1] / w)  # arrows fill their cells
    arrows.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=scale, color=canvas.MARK, width=0.006, headwidth=4)
    panels.photograph(arrows, shot.array(), f"arrows drawn {1 / scale:,.{0 if scale < 0.1 else 2}f} times as long")
    panels.heat(sheet, length, length_hw, "length", size=shot.size, label="pixels")
    panels.heat(
        sheet, direction, angle_hw, "direction", size=shot.size, limits=(-180, 180), colours=canvas.CYCLIC, label="degrees; 90 is up"
    )
    for panel in (length, direction):
        canvas.outline(panel, shot.labels_HW, around="black")
    return sheet


BODY_EDGE = Figure(
    source="Li et al., Decoupled Body and Edge Supervision (ECCV 2020), Fig. 5",
    caption="The first three principal components of (a) the body, (b) the rest, (c) both merged with the low-level features, as "
    "red, green and blue; components are each map's own, so only likeness within a map has a meaning. The titles have their "
    "share of the variance. (d) is the edge prior: where the predicted probability of an edge exceeds 0.8.",
    fits=is_decoupled,
    needs="head decoupled",
    of_image=body_edge,
)

FLOW = Figure(
    source="Li et al., Decoupled Body and Edge Supervision (ECCV 2020), Fig. 6",
    caption="The learned flow: an arrow points from a pixel to where its body feature is taken from. Lengths are in pixels of the "
    "image; the thin lines are the borders of the labels. Towards the inside of objects is what the paper finds for FCN; "
    "with ASPP it finds flow at borders alone.",
    fits=is_decoupled,
    needs="head decoupled",
    of_image=flow,
)
