"""Gaussian filters and mean field on them: exact over near tiles and over all pairs, and on the lattice; peers where there are any."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Case, Work
from models import kernels
from models.crf.mean_field import bilateral_features
from models.crf.mean_field import mean_field as steps
from models.filters.exact import Exact
from models.filters.permutohedral import Permutohedral
from pipeline.evaluation.dense_crf import dense_crf
from pipeline.settings.presets import PRESETS

CLASSES, SIZE = 21, (334, 500)
OPTIONS: dict[str, Any] = {**PRESETS["crf_rnn"], "iterations": 5, "normalization": "symmetric"}


def picture() -> NDArray[np.uint8]:
    """Smooth regions, an edge in each direction and some noise: about as many corners as a photograph's."""
    coarse = F.interpolate(torch.rand(1, 3, 9, 13), SIZE, mode="bicubic")[0] * 130 + 40
    coarse[:, : SIZE[0] // 3] += 30
    coarse[:, :, SIZE[1] // 2 :] -= 20
    return (coarse + torch.randn(3, *SIZE)).clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def features(device: torch.device) -> Tensor:
    """The bilateral features of CRF-RNN: B5N."""
    y, x = torch.meshgrid(*(torch.arange(length) for length in SIZE), indexing="ij")
    colours = torch.from_numpy(picture()).permute(2, 0, 1) / OPTIONS["theta_beta"]
    return torch.cat([torch.stack([x, y]) / OPTIONS["theta_alpha"], colours]).flatten(1)[None].to(device)


def filtering(device: torch.device) -> Mapping[str, Work]:
    """One filtering on a lattice that is there."""
    lattice = Permutohedral(features(device))
    values = torch.rand(1, CLASSES, SIZE[0] * SIZE[1], device=device)
    return {"ours": lambda: lattice(values), "entry by entry": lambda: by_entries(lattice, values)}


def by_entries(lattice: Permutohedral, values_BVN: Tensor) -> Tensor:
    """The same by index_add and index_select, as lattices in plain torch are written."""
    values_PV = values_BVN[0].T
    table_TV = values_PV.new_zeros(len(lattice.starts_T), CLASSES)
    for row_P, weight_P in zip(lattice.row_PC.unbind(1), lattice.weights_PC.unbind(1), strict=True):
        table_TV.index_add_(0, row_P, weight_P[:, None] * values_PV)
    for row_T3, weights_T3 in lattice.neighbours:
        before_TV, after_TV = (weights_T3[:, k, None] * table_TV.index_select(0, row_T3[:, k]) for k in (0, 2))
        table_TV = table_TV + before_TV + after_TV
    pairs = zip(lattice.row_PC.unbind(1), lattice.weights_PC.unbind(1), strict=True)
    parts = [weight_P[:, None] * table_TV.index_select(0, row_P) for row_P, weight_P in pairs]
    return lattice.scale * torch.stack(parts).sum(0).T[None]


def mean_field(device: torch.device) -> Mapping[str, Work]:
    """Five steps with the lattice's construction; pydensecrf where it is installed."""
    image = picture()
    probabilities = torch.rand(CLASSES, *SIZE).softmax(0)
    there = probabilities.to(device)
    variants: dict[str, Work] = {"ours": lambda: dense_crf(there, image, filtering="permutohedral", **OPTIONS)}
    if device.type == "cpu" and importlib.util.find_spec("pydensecrf") is not None:
        variants["pydensecrf"] = lambda: released(probabilities.numpy(), image)
    return variants


def released(probabilities: NDArray[np.float32], image: NDArray[np.uint8]) -> object:
    """Krahenbuhl's C++ on one core."""
    peer = importlib.import_module("pydensecrf.densecrf")
    crf = peer.DenseCRF2D(SIZE[1], SIZE[0], CLASSES)
    crf.setUnaryEnergy(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(CLASSES, -1))
    crf.addPairwiseGaussian(sxy=OPTIONS["theta_gamma"], compat=OPTIONS["smoothness"])
    crf.addPairwiseBilateral(sxy=OPTIONS["theta_alpha"], srgb=OPTIONS["theta_beta"], rgbim=image, compat=OPTIONS["appearance"])
    return crf.inference(OPTIONS["iterations"])


def photograph(height: int, width: int, device: torch.device) -> Tensor:
    """A portrait of the public domain: 3HW in [0, 255]."""
    from skimage.data import astronaut

    whole_13HW = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float()
    return F.interpolate(whole_13HW, (height, width), mode="bicubic", antialias=True).clamp(0, 255).round().to(device)


def exact_steps(device: torch.device) -> Mapping[str, Work]:
    """Five steps of CRF-RNN, filters built anew, as in a forward pass."""
    image, logits = photograph(500, 334, device), 3 * torch.randn(1, CLASSES, 500, 334, device=device)
    eye = torch.eye(CLASSES, device=device)
    weights = {"spatial_weight_KK": 3 * eye, "bilateral_weight_KK": 5 * eye, "compatibility_KK": eye}
    variants: dict[str, Work] = {
        "ours": lambda: steps(logits, image, **weights),
        "lattice": lambda: steps(logits, image, filtering="permutohedral", **weights),
    }
    if device.type == "cuda":
        variants["without Triton"] = lambda: plainly(variants["ours"])
    return variants


def plainly(work: Work) -> object:
    """Without Triton."""
    kernels.plain = True
    try:
        return work()
    finally:
        kernels.plain = False


def exact_filtering(device: torch.device) -> Mapping[str, Work]:
    """One filtering of an eighth of the pixels: tiles, all pairs of tiles, attention (in float32 not centred on tiles: 1e-4 off)."""
    features = bilateral_features(photograph(176, 118, device), 160.0, 3.0)
    values = torch.rand(1, CLASSES, features.shape[2], device=device)
    near, every = Exact(features), Exact(features, tolerance=0.0)
    return {"ours": lambda: near(values), "all pairs": lambda: every(values), "attention": lambda: attention(features, values)}


def attention(features_BDN: Tensor, values_BVN: Tensor) -> Tensor:
    """The filter divided by its sums, as one call of fused attention of equal widths."""
    features_BND = features_BDN.mT
    halves_BN1 = features_BND.square().sum(2, keepdim=True) / 2
    query_BNE, key_BNE = torch.cat([features_BND, torch.ones_like(halves_BN1)], 2), torch.cat([features_BND, -halves_BN1], 2)
    width = 32
    query_BNE, key_BNE, values_BNV = (F.pad(x, (0, width - x.shape[2]))[:, None] for x in (query_BNE, key_BNE, values_BVN.mT))
    return F.scaled_dot_product_attention(query_BNE, key_BNE, values_BNV, scale=1.0)


def exact_training(device: torch.device) -> Mapping[str, Work]:
    """Forward and backward of one filtering at 512 x 512 / 4, with gradients to values and features."""
    features = bilateral_features(photograph(128, 128, device), 40.0, 3.0).requires_grad_()
    values = torch.rand(1, CLASSES, features.shape[2], device=device, requires_grad=True)
    return {"ours": lambda: Exact(features)(values).square().sum().backward()}


def exact_memory(device: torch.device) -> Mapping[str, Work]:
    """One filtering of two classes at 512 x 512."""
    features = bilateral_features(photograph(512, 512, device), 160.0, 3.0)
    values = torch.rand(1, 2, features.shape[2], device=device)
    return {"ours": lambda: Exact(features)(values)}


CASES = (
    Case("lattice, one filtering, 500 x 334 x 21", "", filtering),
    Case("dense CRF on the lattice, 500 x 334 x 21, five steps", "2.0 s on a CPU", mean_field),
    Case("exact mean field, 500 x 334 x 21, five steps", "0.2 s on a GPU; on a CPU 5 times the lattice", exact_steps),
    Case("exact filtering, 176 x 118 x 21", "", exact_filtering),
    Case("exact filtering and gradients, 128 x 128 x 21", "", exact_training),
    Case("exact filtering, 512 x 512 x 2: memory", "the pixels', not their squares'", exact_memory),
)
