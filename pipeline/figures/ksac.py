"""KSAC's figure: the feature maps of each rate, of a shared kernel and of ASPP's separate ones.

Huang, Wang, Jia, He: KSAC (Neurocomputing 443, 2021), Fig. 2.4 of Huang's thesis (UTS, 2022): 25 maps for each rate, one of them enlarged.
Shown is what leaves each rate's batch norm and ReLU. The thesis does not say how it chose the 25: here they are those that vary most over
the image; with a shared kernel they are the same channels at every rate, since channel c is there the same detector at another scale.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.heads.deeplab import DeepLab
from models.heads.ksac import KSAC
from models.segmenter import Segmenter
from pipeline.figures import canvas, panels
from pipeline.figures.figure import Figure
from pipeline.figures.material import Run, Shot, described, look
from pipeline.settings.schema import Config

SIDE = 5  # maps in a row and in a column
GAP = 1  # feature pixels between maps


def shares_kernels(config: Config) -> bool:
    """Whether a run has KSAC's head."""
    return config.head.name == "ksac"


def has_rates(config: Config) -> bool:
    """Whether a run has branches with rates and kernels of their own."""
    return config.head.name == "deeplab" or (config.head.name == "ksac" and not config.head.options.get("shared", True))


def branches(model: Segmenter) -> dict[int, str]:
    """The submodules after which a head's feature maps of each rate are complete, by rate."""
    if isinstance(model.head, KSAC):
        return {rate: f"head.pyramid.norms.{index}" for index, rate in enumerate(model.head.pyramid.rates)}
    assert isinstance(model.head, DeepLab)
    found = {}
    for index, branch in enumerate(model.head.aspp.atrous):
        first = branch.get_submodule("0")
        assert isinstance(first, nn.Conv2d)
        found[int(first.dilation[0])] = f"head.aspp.atrous.{index}"
    return found


def maps_of(run: Run, shot: Shot) -> dict[int, NDArray[np.float32]]:
    """The feature maps CHW of each rate."""
    names = branches(run.model)
    seen = look(run, shot, list(names.values()))
    return {rate: seen.outputs[name][0].float().cpu().numpy() for rate, name in names.items()}


def liveliest(maps: Sequence[NDArray[np.float32]], count: int) -> list[NDArray[np.int64]]:
    """For each CHW the channels that vary most over the image, of all of them together where they share their kernel (one result each)."""
    variance_C = np.sum([values_CHW.var((1, 2)) for values_CHW in maps], 0)
    return [np.argsort(-variance_C, kind="stable")[:count]] * len(maps)


def mosaic(maps_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps in a square, each from its own least to its own largest value (0 to 1), nothing (NaN) between and after them."""
    _, H, W = maps_NHW.shape
    canvas_HW = np.full((SIDE * (H + GAP) - GAP, SIDE * (W + GAP) - GAP), np.nan, np.float32)
    for index, map_HW in enumerate(maps_NHW[: SIDE * SIDE]):
        top, left = index // SIDE * (H + GAP), index % SIDE * (W + GAP)
        canvas_HW[top : top + H, left : left + W] = (map_HW - map_HW.min()) / max(float(np.ptp(map_HW)), 1e-12)
    return canvas_HW


def rates(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 2.4: for each run a row with one map enlarged and a row with 25; a column is a rate."""
    runs = [one for one in (run, baseline) if one is not None]
    found = [maps_of(one, shot) for one in runs]
    columns = sorted({rate for maps in found for rate in maps})
    sheet = canvas.sheet(2 * len(runs), 1 + len(columns), ("Feature maps of each rate", described(runs, shot)), shape=shot.shape)
    for number, (one, maps) in enumerate(zip(runs, found, strict=True)):
        upper, lower = sheet.panels[2 * number : 2 * number + 2]
        panels.photograph(upper[0], shot.array(), one.config.name)
        shared = isinstance(one.model.head, KSAC) and one.model.head.pyramid.shared
        kind = "one kernel for all rates" if shared else "a kernel for each rate"
        canvas.note(lower[0], kind)
        groups = liveliest(list(maps.values()), SIDE**2) if shared else [liveliest([values], SIDE**2)[0] for values in maps.values()]
        channels = dict(zip(maps, groups, strict=True))
        for rate, big, many in zip(columns, upper[1:], lower[1:], strict=True):
            if rate not in maps:
                canvas.note(big, f"no rate {rate}")
                canvas.bare(many)
                continue
            first = channels[rate][0]
            panels.heat(sheet, big, maps[rate][first], f"rate {rate}, channel {first}", size=shot.size, bar=False)
            panels.heat(sheet, many, mosaic(maps[rate][channels[rate]]), "", bar=False, limits=(0, 1))
    return sheet


RATES = Figure(
    source="Huang et al., KSAC (Neurocomputing 2021); Huang, thesis (UTS 2022), Fig. 2.4",
    caption="Feature maps after each atrous rate's batch norm and ReLU: 25 channels, and the first of them enlarged, each from its own "
    "least (dark) to its own largest value (light). With KSAC's shared kernel a place in the square is the same channel at "
    "every rate; separate kernels have nothing to do with one another. The channels are those that vary most over the image.",
    fits=shares_kernels,
    needs="head ksac",
    of_image=rates,
    beside=has_rates,
)
