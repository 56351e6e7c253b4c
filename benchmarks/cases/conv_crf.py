"""ConvCRF: a loop over the taps of half the window, against a copy of the scores for every tap (im2col), as released."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, Work
from models.crf.conv import conv_crf

CLASSES, SIZE, FILTER, ITERATIONS = 21, (500, 500), 11, 5
THETA_GAMMA, THETA_BETA, SMOOTHNESS, APPEARANCE, WEIGHT = 3.0, 13.0, 3.0, 10.0, 0.2


def learning(device: torch.device) -> Mapping[str, Work]:
    """Gradients reach the unary, thetas and weights."""
    return works(device, 4, learns=True)


def fixed(device: torch.device) -> Mapping[str, Work]:
    """The gradient reaches the unary alone."""
    return works(device, 4, learns=False)


def sharp(device: torch.device) -> Mapping[str, Work]:
    """No blur; im2col would take 2.5 GB for each iteration, so that one class in seven stands for all in both."""
    return works(device, 1, learns=True, classes=3)


def works(device: torch.device, blur: int, *, learns: bool, classes: int = CLASSES) -> Mapping[str, Work]:
    """Both variants, forward and backward, on the same inputs."""
    unary = torch.randn(1, classes, *SIZE, device=device, requires_grad=True)
    image = torch.rand(1, 3, *SIZE, device=device) * 255
    numbers = (THETA_GAMMA, THETA_BETA, SMOOTHNESS, APPEARANCE)
    parameters = [torch.tensor(number, device=device, requires_grad=learns) for number in numbers]
    weight = torch.full((1, classes, 1, 1), WEIGHT, device=device, requires_grad=learns)
    cotangent = torch.randn_like(unary)
    asked = [unary, *parameters, weight] if learns else [unary]

    def work(form) -> Work:
        return lambda: torch.autograd.grad(form(unary, image, *parameters, weight, blur), asked, cotangent)

    return {"ours": work(ours), "im2col": work(im2col)}


def ours(
    unary: Tensor, image: Tensor, theta_gamma: Tensor, theta_beta: Tensor, smoothness: Tensor, appearance: Tensor, weight: Tensor, blur: int
) -> Tensor:
    """The released start, so that both compute the same."""
    return conv_crf(
        unary, image, filter_size=FILTER, blur=blur, iterations=ITERATIONS, theta_beta=theta_beta, theta_gamma=theta_gamma,
        appearance=appearance, smoothness=smoothness, weight=weight, start="logits",
    )  # fmt: skip


def im2col(
    unary: Tensor, image: Tensor, theta_gamma: Tensor, theta_beta: Tensor, smoothness: Tensor, appearance: Tensor, weight: Tensor, blur: int
) -> Tensor:
    """The kernel of all taps, then for each iteration a copy of the scores for each tap, their product and its sum."""
    rows, columns = (torch.arange(length, device=unary.device, dtype=unary.dtype) for length in SIZE)
    places = torch.stack([rows[:, None].expand(SIZE), columns.expand(SIZE)])[None]
    kernel = smoothness * taps(places / theta_gamma, blur) + appearance * taps(image / theta_beta, blur)
    log = q = unary.log_softmax(1)
    for step in range(ITERATIONS):
        small = lowered(q, blur)
        copies = F.unfold(small, FILTER, padding=FILTER // 2).view(*small.shape[:2], FILTER**2, *small.shape[2:])
        message = (kernel * copies).sum(2)
        if blur > 1:
            message = F.interpolate(message, scale_factor=blur, mode="bilinear", align_corners=False)
            above, left = (math.ceil(-length % blur / 2) for length in SIZE)
            message = message[..., above : above + SIZE[0], left : left + SIZE[1]].contiguous()
        q = (1 - weight) * log + weight * message
        if step < ITERATIONS - 1:
            q = q.softmax(1)
    return q


def taps(features: Tensor, blur: int) -> Tensor:
    """The Gaussian of every tap, 0 where it lies outside: B, 1, taps, height, width."""
    features, reach = lowered(features, blur), FILTER // 2
    height, width = features.shape[2:]
    found = features.new_zeros(len(features), FILTER, FILTER, height, width)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            here = (slice(max(0, -y), min(height, height - y)), slice(max(0, -x), min(width, width - x)))
            there = (slice(max(0, y), min(height, height + y)), slice(max(0, x), min(width, width + x)))
            difference = features[:, :, *there] - features[:, :, *here]
            found[:, y + reach, x + reach, *here] = torch.exp(torch.sum(-0.5 * difference * difference, dim=1))
    return found.view(len(features), 1, FILTER**2, height, width)


def lowered(x: Tensor, blur: int) -> Tensor:
    """Average pooling."""
    if blur == 1:
        return x
    above, left = (math.ceil(-length % blur / 2) for length in SIZE)
    return F.avg_pool2d(x, blur, padding=(above, left), count_include_pad=False)


TARGET = "3x, memory of two score maps (42 MB)"
CASES = (
    Case("ConvCRF, filter 11, blur 4, 500 x 500 x 21, all learns", TARGET, learning),
    Case("ConvCRF, filter 11, blur 4, 500 x 500 x 21, unary alone", TARGET, fixed),
    Case("ConvCRF, filter 11, blur 1, 500 x 500 x 3, all learns", "3x", sharp),
)
