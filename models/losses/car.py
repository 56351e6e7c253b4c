"""Class-aware regularisation: pixels near their class's centre, centres and pixels far from other classes' centres.

Huang, Kang, Chen, Zhe, Jia, Bao, He: CAR: Class-aware Regularizations for Semantic Segmentation (ECCV 2022); chapter 4 of Huang's thesis.
With z_p the C features of pixel p (N of them), y_p its class of K, mu_c the centre of class c over the global batch (0 where absent),
sg a stop of the gradient, 1[] an indicator and relu(x) = max(x, 0),

    intra_c2p   (mean over p and channels of 1[p labelled] |sg(mu_y) - z_p|)^2, at least 1e-5
    inter_c2c   (mean over c of D_c)^2   A = softmax of mu sg(mu)^T / sqrt C     D_c = sum over c' != c of relu(A_cc' - e0 / (K - 1))
    inter_c2p   (mean over p of D_p)^2   A = softmax of z sg(mu)^T / sqrt C, the logit of the own class being sg(mu_y . mu_y) / sqrt C
                                         D_p = sum over c != y_p of relu(A_pc - e1 / (K - 1))

D clipped to [1e-7, 1 - 1e-7]. So does the released code, which we follow. `form: paper` takes the thesis's equations where they differ:
f_mse is the mean of squares (4.2, 4.7, 4.14), and inter_c2p's softmax is not scaled (4.11). Of both: absent classes keep their row in
inter_c2c, ignored pixels belong to inter_c2p, where every class is another one, and count as 0 in intra_c2p.
Centres and means are the global batch's: two reductions over the ranks, with gradient.
"""

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from models.kernels.precision import without_autocast
from models.parts.entropy import IGNORE, Entropy, check_weights
from models.parts.layers import Output, at_least_float32, size_of
from models.parts.reductions import all_sum

TERMS = ("intra_c2p", "inter_c2c", "inter_c2p")
Form = Literal["released", "paper"]


class CAR:
    """The terms of `cross_entropy`, with its options, and those of the module's text, times their weights; 0 leaves one out."""

    needs = ()

    def __init__(
        self,
        classes: int,
        auxiliary_weight: float,
        *,
        intra_c2p: float = 1.0,
        inter_c2c: float = 1.0,
        inter_c2p: float = 1.0,
        epsilon_c2c: float = 0.5,
        epsilon_c2p: float = 0.25,
        form: Form = "released",
        unary_weight: float = 1.0,
        class_weights: tuple[float, ...] | None = None,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 10000,
    ) -> None:
        self.entropy = Entropy("car", classes, auxiliary_weight, unary_weight, class_weights, ohem_threshold, ohem_min_kept)
        weights = dict(zip(TERMS, (intra_c2p, inter_c2c, inter_c2p), strict=True))
        check_weights("car", weights | {"epsilon_c2c": epsilon_c2c, "epsilon_c2p": epsilon_c2p})
        check(classes, form)
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.classes, self.epsilons, self.form = classes, (epsilon_c2c, epsilon_c2p), form

    def __call__(self, output: Output, labels_BHW: Tensor) -> dict[str, Tensor]:
        """The terms. labels_BHW: class ids at the image's size, 255 is ignored."""
        epsilon_c2c, epsilon_c2p = self.epsilons
        terms = class_aware_terms(
            output.features_BChw, labels_BHW, self.classes,
            epsilon_c2c=epsilon_c2c, epsilon_c2p=epsilon_c2p, terms=self.weights.keys(), form=self.form,
        )  # fmt: skip
        return self.entropy(output, labels_BHW) | {name: self.weights[name] * term for name, term in terms.items()}


def check(classes: int, form: str) -> None:
    """ValueError for what the terms are not defined for."""
    if classes < 2:
        raise ValueError(f"loss car: needs at least 2 classes to tell apart, there is {classes}")
    if form not in ("released", "paper"):
        raise ValueError(f"loss car: form must be released or paper, not {form!r}")


def class_aware_terms(
    features_BCHW: Tensor,
    labels_BHW: Tensor,
    num_classes: int,
    *,
    ignore_index: int = IGNORE,
    epsilon_c2c: float = 0.5,
    epsilon_c2p: float = 0.25,
    terms: Collection[str] = TERMS,
    form: Form = "released",
) -> dict[str, Tensor]:
    """Those of the three `terms` that are asked for, unweighted, over the global batch: every rank gets the same values.

    features_BCHW: any float type, float32 at least inside, under autocast too. labels_BHW: integers of any size, brought to the
    features'; `ignore_index` and what is no class id belong to no class. ValueError: fewer than 2 classes.
    """
    check(num_classes, form)
    if not terms:
        return {}
    with without_autocast(features_BCHW.device):
        rows_NC = at_least_float32(features_BCHW).movedim(1, -1).flatten(0, 2)
        labels_N = labels_at(labels_BHW, size_of(features_BCHW)).flatten().long()
        labelled_N = (labels_N != ignore_index) & (labels_N >= 0) & (labels_N < num_classes)
        labels_N = labels_N.where(labelled_N, num_classes)
        own_NK = labels_N[:, None] == torch.arange(num_classes, device=labels_N.device)
        centres_KC = class_centres(rows_NC, own_NK)
        fixed_KC = centres_KC.detach()
        squared = form == "paper"
        sums = {}
        if "intra_c2p" in terms:
            sums["intra_c2p"] = distances(rows_NC, fixed_KC, labels_N, labelled_N, squared) / rows_NC.shape[1]
        if "inter_c2p" in terms:
            scale = 1.0 if form == "paper" else rows_NC.shape[1] ** -0.5
            others_N = others_of_pixels(rows_NC, fixed_KC, own_NK, scale, epsilon_c2p)
            sums["inter_c2p"] = (others_N.square() if squared else others_N).sum()
        # One reduction for both means and their count.
        count = rows_NC.new_tensor(len(rows_NC))
        *totals, count = all_sum(torch.stack([*sums.values(), count]))
        means = dict(zip(sums, (total / count.clamp(min=1) for total in totals), strict=True))
        if "inter_c2c" in terms:
            others_K = others_of_centres(centres_KC, epsilon_c2c)
            means["inter_c2c"] = (others_K.square() if squared else others_K).mean()
        found = {name: mean if squared else mean.square() for name, mean in means.items()}
        return {name: found[name].clamp(min=1e-5) if name == "intra_c2p" else found[name] for name in TERMS if name in found}


def labels_at(labels_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels at `size` by nearest corners-aligned interpolation: source index round(i (H - 1) / (h - 1)), 0 where h is 1."""
    for axis, target in ((-2, size[0]), (-1, size[1])):
        source = labels_BHW.shape[axis]
        if source != target:
            steps = torch.arange(target, device=labels_BHW.device, dtype=torch.float32)
            index = (steps * (source - 1) / max(target - 1, 1)).round().long()  # the product first: it is exact
            labels_BHW = labels_BHW.index_select(axis, index)
    return labels_BHW


def class_centres(rows_NC: Tensor, own_NK: Tensor) -> Tensor:
    """The mean of each class's pixels over the global batch, 0 where it has none: KC, with gradient."""
    ones_NK = own_NK.to(rows_NC.dtype)
    sums_KD = all_sum(torch.cat([ones_NK.T @ rows_NC, ones_NK.sum(0)[:, None]], dim=1))
    return sums_KD[:, :-1] / sums_KD[:, -1:].detach().clamp(min=1)


def distances(rows_NC: Tensor, fixed_KC: Tensor, labels_N: Tensor, labelled_N: Tensor, squared: bool) -> Tensor:
    """The sum over pixels and channels of the distances, or squared distances, of labelled pixels from their class's centre."""
    differences_NC = fixed_KC[labels_N.where(labelled_N, 0)].sub_(rows_NC)
    lengths_N = differences_NC.square().sum(1) if squared else torch.linalg.vector_norm(differences_NC, 1, dim=1)
    return (lengths_N * labelled_N).sum()


def others_of_centres(centres_KC: Tensor, epsilon: float) -> Tensor:
    """D_c: how similar each class's centre is to those of all others."""
    logits_KK = centres_KC @ centres_KC.detach().T / math.sqrt(centres_KC.shape[1])
    return others(logits_KK, torch.eye(len(logits_KK), device=logits_KK.device, dtype=torch.bool), epsilon)


def others_of_pixels(rows_NC: Tensor, fixed_KC: Tensor, own_NK: Tensor, scale: float, epsilon: float) -> Tensor:
    """D_p: how similar each pixel is to the centres of classes that are not its own."""
    logits_NK = (rows_NC @ fixed_KC.T).where(~own_NK, fixed_KC.square().sum(1)) * scale
    return others(logits_NK, own_NK, epsilon)


def others(logits_NK: Tensor, own_NK: Tensor, epsilon: float) -> Tensor:
    """The sum over other classes of what softmax gives them beyond epsilon / (K - 1): N."""
    beyond_NK = (logits_NK.softmax(1) - epsilon / (logits_NK.shape[1] - 1)).clamp(min=0)
    return beyond_NK.masked_fill(own_NK, 0).sum(1).clamp(1e-7, 1 - 1e-7)
