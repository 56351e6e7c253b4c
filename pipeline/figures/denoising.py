"""ConvCRF's synthetic task: labels with noise are the unary, and CRFs are to find the labels again, guided by the image.

Teichmann and Cipolla: Convolutional CRFs for Semantic Segmentation (BMVC 2019), section 5.1, Fig. 1 and Table 1. Labels L (a map of 0 and 1
for each class) are brought to an eighth of their size, there a share of them is exchanged, and the result is enlarged again. The paper
does not say how; its released code (utils/synthetic.py) resizes everything bilinearly, with N a random class of each small pixel:

    p = m L + (1 - m) N        m: 0 where a small pixel is exchanged (a fifth of them), else 1

The released benchmark then gives ConvCRF p for logits, and FullCRF log p, from which a class of p = 0 never comes back. Here all have the
same unary, U = log(c p + (1 - c) (1 - p) / (K - 1)), of confidence c.

FullCRF and ConvCRFs have the same constants, those of the paper, and the same update, scores = U + M with both kernels normalised
(D^-1/2 K D^-1/2): they differ in the window and in the blur alone, and FullCRF's lattice is an approximation. Trained ones have learned
their bandwidths and weights (and with +C a label compatibility) on noisy labels of the training split.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.crf.conv import Conv, conv_crf
from models.parts.layers import resize
from pipeline.data.prepared import Pair, open_image, open_label
from pipeline.evaluation.dense_crf import dense_crf
from pipeline.evaluation.metrics import VOID, confusion_matrix, scores
from pipeline.settings.presets import PRESETS

CONSTANTS = {"theta_alpha": 80.0, "theta_beta": 13.0, "theta_gamma": 3.0}
APPEARANCE, SMOOTHNESS = 10.0, 3.0
SIZES = (5, 7, 11, 13)  # of ConvCRFs' windows
TRAINED = 11
BATCH, RATE = 4, 0.05
Method = Callable[[Tensor, NDArray[np.uint8]], NDArray[np.uint8]]  # (logits_KHW, image_HW3) -> class ids HW


@dataclass(frozen=True, kw_only=True)
class Noise:
    """factor: how much smaller labels are where they are exchanged; flip: the share that is; confidence: of a class that is sure."""

    factor: int = 8
    flip: float = 0.2
    confidence: float = 0.7


@dataclass(frozen=True)
class Case:
    """One image (H, W, 3), its labels (H, W), and the noisy ones as probabilities."""

    name: str
    image_HW3: NDArray[np.uint8]
    labels_HW: NDArray[np.uint8]
    noisy_KHW: Tensor


def noisy(labels_HW: NDArray[np.uint8], classes: int, noise: Noise, random: np.random.Generator) -> Tensor:
    """The p of the module's text, KHW; where all that is resized is void, a random class."""
    H, W = labels_HW.shape
    size = max(1, H // noise.factor), max(1, W // noise.factor)
    small_1Khw = resize(one_hot(labels_HW, classes)[None], size)
    known_11hw = small_1Khw.sum(1, keepdim=True)
    small_1Khw = torch.where(known_11hw > 0, small_1Khw / known_11hw.clamp(min=1e-6), one_hot(random.integers(0, classes, size), classes))
    others_1Khw = one_hot(random.integers(0, classes, size), classes)[None]
    kept_11hw = torch.from_numpy(random.random(size) >= noise.flip).float()[None, None]
    labels_1KHW, others_1KHW, kept_11HW = (resize(small, (H, W)) for small in (small_1Khw, others_1Khw, kept_11hw))
    return (kept_11HW * labels_1KHW + (1 - kept_11HW) * others_1KHW)[0]


def one_hot(ids_HW: NDArray[Any], classes: int) -> Tensor:
    """1 at each pixel's class, else 0; void has none: KHW."""
    return (torch.from_numpy(ids_HW.astype(np.int64)) == torch.arange(classes)[:, None, None]).float()


def unary(noisy_KHW: Tensor, confidence: float) -> Tensor:
    """U of the module's text: log-probabilities KHW."""
    return (noisy_KHW * confidence + (1 - noisy_KHW) * (1 - confidence) / max(len(noisy_KHW) - 1, 1)).log()


def cases(pairs: Sequence[Pair], classes: int, noise: Noise, seed: int) -> Iterator[Case]:
    """The pairs with their noise, which depends on the seed and on the image's place among them."""
    for number, pair in enumerate(pairs):
        labels_HW = open_label(pair)
        noisy_KHW = noisy(labels_HW, classes, noise, np.random.default_rng((seed, number)))
        yield Case(pair.name, np.asarray(open_image(pair)), labels_HW, noisy_KHW)


def windowed(logits_KHW: Tensor, image_HW3: NDArray[np.uint8], filter_size: int, blur: int = 4) -> Tensor:
    """ConvCRF with FullCRF's update: scores KHW, up to a constant of each pixel.

    (1 - w) U + w M with w = 1/2 is U + M where U and both kernels' weights are doubled.
    """
    return conv_crf(
        2 * logits_KHW[None], pixels(image_HW3), filter_size=filter_size, blur=blur, iterations=5, **CONSTANTS,
        appearance=2 * APPEARANCE, smoothness=2 * SMOOTHNESS, weight=0.5, normalization="symmetric",
    )[0]  # fmt: skip


def pixels(image_HW3: NDArray[np.uint8]) -> Tensor:
    """An image as a batch 13HW in [0, 255]."""
    return torch.from_numpy(np.array(image_HW3)).movedim(-1, 0)[None].float()


def full(logits_KHW: Tensor, image_HW3: NDArray[np.uint8], filtering: str) -> NDArray[np.uint8]:
    """FullCRF's class ids HW; filtering: as of `dense_crf`."""
    options: dict[str, Any] = {**PRESETS["conv_crf"], "filtering": filtering}
    return dense_crf(logits_KHW.softmax(0).numpy(), image_HW3, **options).argmax(0).astype(np.uint8)


def ids(scores_KHW: Tensor) -> NDArray[np.uint8]:
    """The best classes HW."""
    return scores_KHW.argmax(0).to(torch.uint8).numpy()


def untrained(exact: bool) -> dict[str, Method]:
    """The methods of Table 1 by name; exact: FullCRF without its lattice too, whose time grows with the square of the pixels."""
    methods: dict[str, Method] = {
        "unary": lambda logits_KHW, image_HW3: ids(logits_KHW),
        "FullCRF": lambda logits_KHW, image_HW3: full(logits_KHW, image_HW3, "permutohedral"),
    }
    if exact:
        methods["FullCRF, exact"] = lambda logits_KHW, image_HW3: full(logits_KHW, image_HW3, "exact")
    for size in SIZES:
        methods[f"Conv{size}"] = lambda logits_KHW, image_HW3, size=size: ids(windowed(logits_KHW, image_HW3, size))
    return methods


def module(classes: int, *, compatibility: bool) -> Conv:
    """The ConvCRF that is trained: models/crf/conv.py's, from Conv11's constants, behind a classifier that passes logits on, doubled."""
    crf = Conv(
        classes, classes, dropout=0.0, filter_size=TRAINED, blur=4, **CONSTANTS, appearance=2 * APPEARANCE, smoothness=2 * SMOOTHNESS,
        weight=0.5, normalization="symmetric", compatibility=compatibility,
    )  # fmt: skip
    assert crf.classifier.bias is not None
    with torch.no_grad():
        crf.classifier.weight.copy_(2 * torch.eye(classes)[:, :, None, None])
        crf.classifier.bias.zero_()
    crf.classifier.requires_grad_(False)
    return crf


def trained(crf: Conv, pairs: Sequence[Pair], classes: int, noise: Noise, steps: Iterator[int], seed: int) -> Method:
    """Fit the crf by Adam on `BATCH` images a step, each with its own noise; what then uses it."""
    optimizer = torch.optim.Adam(crf.field.parameters(), lr=RATE)
    for step in steps:
        random = np.random.default_rng((seed, step))
        chosen = [pairs[index] for index in random.integers(0, len(pairs), BATCH)]
        optimizer.zero_grad()
        for case in cases(chosen, classes, noise, int(random.integers(2**31))):
            labels_1HW = torch.from_numpy(case.labels_HW.astype(np.int64))[None]
            loss = cross_entropy(through(crf, case, noise), labels_1HW, ignore_index=VOID)
            (loss / BATCH).backward()
        optimizer.step()
    crf.eval()

    def method(logits_KHW: Tensor, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return ids(crf(logits_KHW[None], pixels(image_HW3) / 255, None)[0][0])

    return method


def through(crf: Conv, case: Case, noise: Noise) -> Tensor:
    """The crf's scores 1KHW of a case."""
    return crf(unary(case.noisy_KHW, noise.confidence)[None], pixels(case.image_HW3) / 255, None)[0]


def learned(crf: Conv) -> dict[str, float]:
    """The numbers of a trained crf, of `weight` the mean over the classes."""
    return {name: float(value.detach().exp().mean()) for name, value in crf.field.items() if name != "compatibility"}


@dataclass
class Row:
    """What a method made of the cases: counts, and the seconds of all but the first."""

    confusion_KK: NDArray[np.int64]
    seconds: float = 0.0
    images: int = 0

    def result(self, classes: Sequence[str]) -> dict[str, float]:
        """Accuracy and mIoU (0 to 1), and milliseconds of an image."""
        found = scores(self.confusion_KK, classes)
        timed = max(self.images - 1, 1)
        return {"accuracy": found["pixel_accuracy"], "miou": found["miou"], "milliseconds": 1000 * self.seconds / timed}


@torch.no_grad()
def compare(
    methods: Mapping[str, Method], found: Iterator[Case], classes: Sequence[str], noise: Noise, keep: int
) -> tuple[dict[str, dict[str, float]], list[tuple[Case, dict[str, NDArray[np.uint8]]]]]:
    """The results of each method over the cases, and the class ids that each made of the first `keep`."""
    rows = {name: Row(np.zeros((len(classes), len(classes)), np.int64)) for name in methods}
    kept = []
    for number, case in enumerate(found):
        logits_KHW = unary(case.noisy_KHW, noise.confidence)
        made = {}
        for name, method in methods.items():
            began = time.perf_counter()
            made[name] = method(logits_KHW, case.image_HW3)
            rows[name].seconds += time.perf_counter() - began if number else 0.0  # the first one warms up
            rows[name].images += 1
            rows[name].confusion_KK += confusion_matrix(made[name], case.labels_HW, len(classes))
        if number < keep:
            kept.append((case, made))
    return {name: row.result(classes) for name, row in rows.items()}, kept
