"""Prediction against a plain form of it that holds everything at full size, in float64."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.toy import PADDING, Toy, evaluation, picture, plain_probabilities
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.evaluation import inference
from pipeline.evaluation.inference import predict
from pipeline.evaluation.windows import Network, Scaled, Sliding, Whole, resized_rows, starts


def agree(prediction_HW: np.ndarray, probabilities_KHW: Tensor) -> None:
    """Every pixel has the largest probability, but for ties."""
    best = probabilities_KHW.max(0).values
    chosen = probabilities_KHW.gather(0, torch.tensor(prediction_HW).long()[None])[0]
    assert (best - chosen).max() < 1e-9
    assert len(np.unique(prediction_HW)) > 3  # the test could fail


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(
    "how",
    [
        {"scales": (0.5, 1.0, 1.75), "flip": True},
        {"scales": (0.75,), "flip": False},
        {"scales": (1.25, 0.75), "flip": True, "short_side": 41},
        {"mode": "slide", "window": (24, 32), "stride": (16, 20), "scales": (0.5, 1.0, 1.5), "flip": True},
        {"mode": "slide", "window": (33, 40), "stride": (33, 40), "scales": (1.0,), "flip": True},
        {"mode": "slide", "window": (64, 40), "stride": (7, 39), "scales": (0.5, 1.0), "flip": False},
        {"mode": "slide", "window": (90, 90), "stride": (60, 60), "scales": (1.0, 1.3), "flip": True},
    ],
)
@pytest.mark.parametrize("size", [(53, 77), (64, 40)])
def test_equals_the_plain_form(how, stride, align_corners, size, monkeypatch):
    monkeypatch.setattr(inference, "STRIP", {"cpu": 6 * size[1] * 7, "cuda": 1})  # strips of seven rows
    torch.manual_seed(0)
    model, (image, superpixels_HW) = Toy(6, stride, align_corners), picture(*size)
    how = evaluation(**how)
    with_superpixels = superpixels_HW if stride == 1 else None
    made = predict(Network(model, PADDING), image, with_superpixels, how, 6)
    agree(made.single_HW, plain_probabilities(model, image, with_superpixels, how, (1.0,), False))
    agree(made.multi_HW, plain_probabilities(model, image, with_superpixels, how, how.scales, how.flip))
    assert made.single_HW.shape == made.multi_HW.shape == size
    assert made.single_HW.dtype == np.uint8


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "goal"), [((7, 9), (53, 77)), ((53, 77), (7, 9)), ((1, 1), (5, 4)), ((13, 8), (13, 8)), ((6, 5), (1, 1))])
def test_rows_are_those_of_the_whole_resize(size, goal, align_corners):
    logits = torch.randn(1, 3, *size, dtype=torch.float64)
    whole = interpolate(logits, goal, mode="bilinear", align_corners=align_corners)[0]
    source = Whole(logits[0], align_corners)
    rows = [resized_rows(source, goal, start, min(start + 3, goal[0])) for start in range(0, goal[0], 3)]
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-12)


def test_shares_the_view_that_both_protocols_have():
    model, (image, _) = Toy(6, 4, False), picture(32, 48)
    predict(Network(model, PADDING), image, None, evaluation(scales=(0.5, 1.0), flip=True), 6)
    assert sorted(model.seen) == [(16, 24)] * 2 + [(32, 48)] * 2


def test_single_scale_alone_runs_once():
    model, (image, _) = Toy(6, 4, False), picture(32, 48)
    made = predict(Network(model, PADDING), image, None, evaluation(scales=(1.0,), flip=False), 6)
    assert model.seen == [(32, 48)]
    assert made.multi_HW is made.single_HW


@pytest.mark.parametrize(("size", "window", "stride", "expected"), [
    (100, 40, 30, [0, 30, 60]), (101, 40, 30, [0, 30, 60, 61]), (40, 40, 30, [0]), (20, 40, 30, [0]), (41, 40, 40, [0, 1]),
])  # fmt: skip
def test_windows_cover_the_image_and_stay_inside(size, window, stride, expected):
    assert starts(size, window, stride) == expected


@torch.inference_mode()
def test_of_windows_above_only_what_overlaps_is_held():
    model, (image, _) = Toy(6, 4, False), picture(288, 150)
    network = Network(model, PADDING)
    sliding = Sliding(network, Scaled.of(network, image, None, (288, 150)), (64, 64), (56, 56))
    held = []
    for start in range(0, 288, 4):
        sliding.rows(start, start + 4)
        held.append(sum(logits.logits_KHW.untyped_storage().nbytes() for _, row in sliding.open for _, logits in row))
    a_row = 3 * 6 * 16 * 16 * 8
    assert held[0] == held[-1] == a_row
    assert a_row < max(held) <= 1.25 * a_row


MEMORY = """
import pathlib, sys, torch
from types import SimpleNamespace
from PIL import Image
from pipeline.evaluation.inference import Network, predict
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Evaluation

class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 150, 1, stride=8)
    def forward(self, image, superpixels):
        return SimpleNamespace(logits_BKhw=self.convolution(image), align_corners=False)

torch.set_num_threads(1)
def kilobytes(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))

network = Network(Tiny(), (0.5, 0.5, 0.5))
for mode in ("whole", "slide"):
    how = Evaluation(name="e", of="r", split="v", mode=mode, window=(512, 512), stride=(384, 384), scales=(1.25,), flip=False,
                     launch=Launch(name="l", backend="local"))
    predict(network, Image.new("RGB", (64, 48)), None, how, 150)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS")
    predict(network, Image.new("RGB", (1100, 825), (90, 120, 60)), None, how, 150)
    print((kilobytes("VmHWM") - before) * 1024 / (150 * 1100 * 825 * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_holds_one_full_size_tensor_at_most():
    """The growth of the process's memory, in full-size tensors of 150 classes: one sum and some strips."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True)
    whole, slide = map(float, done.stdout.split())
    assert 0.8 < whole < 1.5
    assert 0.8 < slide < 1.5
