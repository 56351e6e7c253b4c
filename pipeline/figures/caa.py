"""CAA's figure: what its spatial and its channel attention each do to the segmentation.

Huang et al.: Channelized Axial Attention (AAAI 2022), Fig. 3.3 of Huang's thesis (UTS, 2022): segmentations by spatial attention alone, by
channel attention alone, and by both. The thesis shows designs whose branches have classifiers of their own; CAA has one classifier and
both attentions in one product, so here each is taken out of the trained network by itself, nothing else being changed:

    spatial alone   the gates are constant, their mean over places and channels: no channel is preferred
    channel alone   each pixel attends to itself: the values, times the gates that the network computes
    both            the prediction

Below: how much the marked pixel takes from each other one, A_row[i; j, n] A_column[n; i, m]; by how much the gates turn each pixel's
representation (1 - cosine); and the errors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.metrics import VOID
from pipeline.figures import canvas, panels
from pipeline.figures.ecrf import name_at
from pipeline.figures.figure import Figure
from pipeline.figures.material import Run, Seen, Shot, described, look
from pipeline.settings.schema import Config

ATTENTION = "head.attention"


def has_attention(config: Config) -> bool:
    """Whether a run has channelised attention with its gates."""
    return config.head.name == "caa" and bool(config.head.options.get("gates", True))


@dataclass(frozen=True)
class Effects:
    """Three looks at an image, and the parts of the attention that both alone and channel alone are made of."""

    spatial: Seen
    channel: Seen
    both: Seen


def parts(run: Run) -> tuple[list[str], list[str]]:
    """The names of the submodules that give queries and values, and of the gates."""
    module = run.model.get_submodule(ATTENTION)
    axial = hasattr(module, "column_gate")
    made = ("query_column", "query_row", "value") if axial else ("query", "value")
    gates = ("column_gate", "row_gate") if axial else ("gate",)
    return [f"{ATTENTION}.{name}" for name in made], [f"{ATTENTION}.{name}" for name in gates]


def effects(run: Run, shot: Shot) -> Effects:
    """The network's looks with one attention, the other, and both."""
    made, gates = parts(run)
    both = look(run, shot, [*made, *gates, ATTENTION])
    value_1CHW, gate_1CHW = both.outputs[f"{ATTENTION}.value"], gate_of(both, gates)
    constants = {name: lambda gate: torch.full_like(gate, gate.mean().item()) for name in gates}
    spatial = look(run, shot, [ATTENTION], constants)
    channel = look(run, shot, [], {ATTENTION: lambda output: value_1CHW * gate_1CHW.to(output.dtype)})
    return Effects(spatial, channel, both)


def gate_of(seen: Seen, gates: list[str]) -> Tensor:
    """What the gates multiply at each place and channel: 1CHW."""
    if len(gates) == 1:
        return seen.outputs[gates[0]].transpose(1, 2).unflatten(2, seen.outputs[ATTENTION].shape[-2:])
    column_1HC, row_1WC = (seen.outputs[name] for name in gates)
    return column_1HC.transpose(1, 2)[..., None] * row_1WC.transpose(1, 2)[:, :, None]


def attention_at(seen: Seen, place: tuple[int, int]) -> NDArray[np.float32]:
    """How much the pixel at `place` (row, column) takes from the values of each: HW, in all 1."""
    row, column = place
    if f"{ATTENTION}.query" in seen.outputs:
        query_DHW = seen.outputs[f"{ATTENTION}.query"][0].float()
        return (query_DHW * query_DHW[:, row, column, None, None]).sum(0).flatten().softmax(0).view(query_DHW.shape[1:]).cpu().numpy()
    query_DHW, along_DHW = (seen.outputs[f"{ATTENTION}.query_{axis}"][0].float() for axis in ("column", "row"))
    columns_HW = (query_DHW * query_DHW[:, row, None]).sum(0).softmax(0)  # A_column[n; i, m] for every column n
    row_W = (along_DHW[:, row] * along_DHW[:, row, column, None]).sum(0).softmax(0)
    return (columns_HW * row_W).cpu().numpy()


def turned(seen: Seen, gates: list[str]) -> NDArray[np.float32]:
    """1 - the cosine between each pixel's representation and the same without gates: HW. 0: the gates favour no channel there."""
    gated_CHW, gate_CHW = seen.outputs[ATTENTION][0].float(), gate_of(seen, gates)[0].float()
    plain_CHW = gated_CHW / gate_CHW.clamp(min=1e-12)
    return (1 - torch.cosine_similarity(gated_CHW, plain_CHW, dim=0)).clamp(min=0).cpu().numpy()


def attention(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 3.3, with the maps behind it."""
    found, palette = effects(run, shot), run.prepared.palette
    predictions = [
        ("spatial attention alone", found.spatial),
        ("channel attention alone", found.channel),
        ("both: the prediction", found.both),
    ]
    sheet = canvas.sheet(2, 5, ("Spatial and channel attention", described([run], shot)), shape=shot.shape, scales=(0, 1))
    upper, lower = sheet.panels
    panels.photograph(upper[0], shot.array(), f"image; the pixel is of {name_at(run, shot)}")
    panels.segmentation(upper[1], shot.labels_HW, palette, "labels")
    weights_hw = attention_at(found.both, shot.at(found.both.outputs[ATTENTION].shape[-2:]))
    panels.heat(sheet, lower[0], weights_hw, "spatial: what the pixel takes", size=shot.size, label="share")
    turn_hw = turned(found.both, parts(run)[1])
    panels.heat(sheet, lower[1], turn_hw, "channel: how far gates turn it", size=shot.size, label="1 - cosine")
    for panel in (upper[0], lower[0]):
        panels.mark(panel, shot.pixel)
    for (title, seen), above, below in zip(predictions, upper[2:], lower[2:], strict=True):
        panels.segmentation(above, seen.prediction(), palette, title)
        panels.errors(below, seen.prediction(), shot.labels_HW, VOID)
    canvas.legend(sheet, run.prepared.classes, palette, [shot.labels_HW, *(seen.prediction() for _, seen in predictions)])
    return sheet


ATTENTIONS = Figure(
    source="Huang et al., CAA (AAAI 2022); Huang, thesis (UTS 2022), Fig. 3.3",
    caption="Above: what the trained network predicts with spatial attention alone (gates replaced by their mean), with channel "
    "attention alone (each pixel attends to itself, gates as they are), and with both. Below: how much the marked pixel "
    "takes from each other one, in all 1; how far the gates turn each pixel's representation (1 - cosine); the errors.",
    fits=has_attention,
    needs="head caa with gates",
    of_image=attention,
)
