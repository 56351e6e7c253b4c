"""Mean field in a dense conditional random field at test time, on finished probabilities: E-CRF's baseline "Vanilla-CRF".

Krahenbuhl and Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials (NeurIPS 2011). With U = log p:

    q <- softmax(U + smoothness K_s q + appearance K_b q)        q = p at the start
    K_s(i, j) = exp(-|p_i - p_j|^2 / 2 theta_gamma^2)
    K_b(i, j) = exp(-|p_i - p_j|^2 / 2 theta_alpha^2 - |I_i - I_j|^2 / 2 theta_beta^2)

Potts' model: mu = [l != l'] and mu = -I have the same softmax. As in pydensecrf each K is D^-1/2 K D^-1/2 with D = K 1, and p is kept
above 1e-5. Differently from it K_s is exact everywhere, and K_b where that is affordable; elsewhere K_b is on its permutohedral lattice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import inf
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.crf.mean_field import mean_field
from models.parts.layers import at_least_float32
from pipeline.evaluation.metrics import as_tensor
from pipeline.settings.schema import DenseCRF

Array = TypeVar("Array", Tensor, NDArray[Any])
# `auto` filters exactly up to so many pixels: work grows with their square. Both take about a second for ten iterations of 21 classes.
EXACT_PIXELS = {"cpu": 2**13, "cuda": 2**18}
SMALLEST = 1e-5  # of a probability
TOLERANCE = 1e-2  # of a sum of probabilities, in half precision


def dense_crf(
    probabilities_KHW: Array,
    image_HW3: Tensor | NDArray[np.uint8],
    *,
    iterations: int = 10,
    smoothness: float = 3.0,
    theta_gamma: float = 1.0,
    appearance: float = 4.0,
    theta_alpha: float = 67.0,
    theta_beta: float = 3.0,
    filtering: Literal["auto", "exact", "permutohedral"] = "auto",
    normalization: Literal["rows", "symmetric", "none"] = "symmetric",
) -> Array:
    """The probabilities K H W after mean field, of the kind, type and device that they came in.

    probabilities_KHW: floats that sum to 1 over K classes; image_HW3: RGB in uint8; tensors or NumPy arrays. smoothness and appearance
    weigh the kernels; theta_gamma and theta_alpha are in pixels, theta_beta in colours of 0 to 255. filtering `auto`: exact up to
    8,192 pixels on a CPU and 262,144 on a GPU, beyond on the permutohedral lattice, which changes 5 to 6 % of the pixels.
    ValueError: what is no image, no probabilities, or of other sizes; an option out of range.
    """
    given_KHW, image_3HW = _tensor(probabilities_KHW, "probabilities"), _tensor(image_HW3, "the image")
    _check(given_KHW, image_3HW)
    strengths = {"smoothness": smoothness, "appearance": appearance}
    thetas = {"theta_gamma": theta_gamma, "theta_alpha": theta_alpha, "theta_beta": theta_beta}
    _check_options(iterations, strengths, thetas, filtering, normalization)
    logits_BKHW = at_least_float32(given_KHW).clamp(SMALLEST, 1)[None].log()
    ones_K = torch.ones(len(given_KHW), device=given_KHW.device)  # diagonals of matrices
    scores_BKHW = mean_field(
        logits_BKHW,
        image_3HW.to(logits_BKHW).permute(2, 0, 1)[None],
        iterations=iterations,
        **thetas,
        spatial_weight_KK=smoothness * ones_K,
        bilateral_weight_KK=appearance * ones_K,
        compatibility_KK=ones_K,
        filtering=chosen(filtering, given_KHW[0].numel(), given_KHW.device),
        normalization=normalization,
    )
    refined_KHW = scores_BKHW[0].softmax(0).to(given_KHW.dtype)
    return refined_KHW.numpy() if isinstance(probabilities_KHW, np.ndarray) else refined_KHW  # type: ignore[return-value]


def chosen(filtering: str, pixels: int, device: torch.device) -> Any:
    """The filter that `filtering` means for an image of so many pixels: `exact` or `permutohedral`."""
    if filtering != "auto":
        return filtering
    return "exact" if pixels <= EXACT_PIXELS.get(device.type, EXACT_PIXELS["cuda"]) else "permutohedral"


def refined(probabilities_KHW: Tensor, image: Image.Image, settings: DenseCRF) -> Tensor:
    """The class ids H W, uint8, that an evaluation's CRF makes of probabilities and their RGB image."""
    options: dict[str, Any] = {name: value for name, value in asdict(settings).items() if name != "preset"}
    return dense_crf(probabilities_KHW, np.array(image), **options).max(0).indices.to(torch.uint8)


def record(settings: DenseCRF, pixels: Iterable[int], device: torch.device) -> dict[str, Any]:
    """What results say of an evaluation's CRF on images of so many pixels: `auto` differs between sizes and devices."""
    return asdict(settings) | {"filtered": sorted({chosen(settings.filtering, count, device) for count in pixels})}


def _tensor(values: Tensor | NDArray[Any], what: str) -> Tensor:
    """A tensor of the same memory, where it may be written to and lies in order."""
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray):
        raise ValueError(f"dense_crf: {what} must be a tensor or a NumPy array, not {type(values).__name__}")
    try:
        return as_tensor(values)
    except TypeError:
        raise ValueError(f"dense_crf: {what} cannot be of type {values.dtype}") from None


def _check(given_KHW: Tensor, image_HW3: Tensor) -> None:
    """Refuse what are no probabilities of an image."""
    if given_KHW.ndim != 3 or not given_KHW.is_floating_point() or not given_KHW.numel():
        raise ValueError(f"dense_crf: probabilities must be floats K x H x W, not {given_KHW.dtype} {tuple(given_KHW.shape)}")
    if image_HW3.shape != (*given_KHW.shape[1:], 3) or image_HW3.dtype != torch.uint8:
        size = " x ".join(map(str, given_KHW.shape[1:]))
        raise ValueError(
            f"dense_crf: the image must be uint8 {size} x 3, as probabilities are, not {image_HW3.dtype} {tuple(image_HW3.shape)}"
        )
    least, most = (float(value) for value in given_KHW.detach().aminmax())
    apart = float((at_least_float32(given_KHW.detach()).sum(0) - 1).abs().max())
    if not (least >= -TOLERANCE and most <= 1 + TOLERANCE and apart <= TOLERANCE):  # NaN is none of these
        raise ValueError(
            f"dense_crf: probabilities must lie in [0, 1] and sum to 1 over the classes; they reach from {least:g} to {most:g}, "
            f"and sums are off by up to {apart:g} (are they logits?)"
        )


def _check_options(
    iterations: int, strengths: Mapping[str, float], thetas: Mapping[str, float], filtering: str, normalization: str
) -> None:
    """Refuse an option out of range."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"dense_crf: iterations must be a whole number, not {iterations!r}")
    for name, value in strengths.items():
        if not 0 <= value < inf:
            raise ValueError(f"dense_crf: {name} must be finite and not negative, not {value!r}")
    for name, value in thetas.items():
        if not 0 < value < inf:
            raise ValueError(f"dense_crf: {name} must be finite and positive, not {value!r}")
    if filtering not in ("auto", "exact", "permutohedral"):
        raise ValueError(f"dense_crf: filtering must be auto, exact or permutohedral, not {filtering!r}")
    if normalization not in ("rows", "symmetric", "none"):
        raise ValueError(f"dense_crf: normalization must be rows, symmetric or none, not {normalization!r}")
