"""Figures of the CRFs show the networks' own messages, penalties and unaries."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.figure_runs import run_of, shot_of

from models.crf.embedded import MessagePassing
from models.parts.layers import Output, superpixel_mean
from pipeline.figures import conv_crf, crf_rnn, ecrf
from pipeline.figures.material import Seen, look


def test_a_class_is_paired_with_the_one_it_touches_most_and_cosines_are_those_of_their_weights() -> None:
    neighbours_KK = np.array([[0, 5, 2, 0], [5, 0, 9, 0], [2, 9, 0, 0], [0, 0, 0, 0]])
    partners = ecrf.Partners.of(neighbours_KK)
    pairs = list(zip(partners.classes_P.tolist(), partners.partners_P.tolist(), partners.pairs_P.tolist(), strict=True))
    assert pairs == [(1, 2, 9), (2, 1, 9), (0, 1, 5)]
    weights_KC = torch.randn(4, 7)
    for (one, other, _), cosine in zip(pairs, partners.cosines(weights_KC), strict=True):
        a, b = weights_KC[one].tolist(), weights_KC[other].tolist()
        brute = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
        assert cosine == pytest.approx(brute, abs=1e-6)


@pytest.mark.parametrize("place", [(5, 6), (0, 0), (1, 10), (8, 10)])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"compatibility": "pair"}, {"normalization": "count"}, {"normalization": "absolute"},
        {"centre": False, "normalization": "count"},
        {"kernel_size": 5, "dilation": 1}, {"superpixel_weight": 0.0},
    ],
)  # fmt: skip
def test_the_windows_messages_add_up_to_what_the_module_gives(options: dict[str, Any], place: tuple[int, int]) -> None:
    torch.manual_seed(1)
    module = MessagePassing(6, **options).double()
    features, image = torch.randn(1, 6, 9, 11, dtype=torch.float64), torch.rand(1, 3, 36, 44, dtype=torch.float64)
    superpixels = torch.arange(9 * 11).reshape(1, 9, 11) // 13
    output = module(features, image, superpixels)
    seen = Seen(Output(features, features, {}), {"crf.messages": (features, image, superpixels)}, {}, (36, 44))
    maps = ecrf.messages_of(module, seen, place)
    weights_hw = torch.from_numpy(np.where(maps.window_hw, maps.message_hw, 0)).double()
    found_C = features[0, :, place[0], place[1]] + module.pairwise_weight * (weights_hw * features[0]).sum((1, 2))
    found_C = found_C + module.superpixel_weight * superpixel_mean(features, superpixels)[0, :, place[0], place[1]]
    torch.testing.assert_close(found_C, output[0, :, place[0], place[1]], rtol=1e-5, atol=1e-5)
    taps_NN = ecrf.taps_of(module, maps, place)
    assert taps_NN.shape == (module.window[0],) * 2
    assert np.nansum(taps_NN) == pytest.approx(float(weights_hw.sum()), rel=1e-5)


def test_penalties_are_minus_what_the_field_adds(at: Path) -> None:
    run = run_of("joint_crf")
    learned_KK, started_KK = crf_rnn.penalties(run.model, "mean_field")
    np.testing.assert_allclose(learned_KK, -run.model.state_dict()["crf.field.compatibility"].numpy())
    assert (np.diag(started_KK) == -1).all()
    assert np.count_nonzero(started_KK) == len(started_KK)


def test_the_unary_is_the_classifiers_and_the_prediction_the_networks(at: Path) -> None:
    run, shot = run_of("conv_crf"), shot_of()
    seen = look(run, shot, ["crf.classifier"])
    torch.testing.assert_close(seen.outputs["crf.classifier"], seen.output.extras["unary"])
    full = F.interpolate(seen.output.logits_BKhw, shot.size, mode="bilinear")
    assert (seen.prediction() == full.argmax(1)[0].numpy()).all()
    assert conv_crf.has_conv_crf(run.config)
