"""ConvCRF's synthetic task: the noise is what is said of it, and the CRFs that are compared are the same but for their windows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Project
from PIL import Image

from pipeline import denoising
from pipeline.denoising import Noise


def test_noise_exchanges_the_wanted_share_of_blocks_for_other_classes() -> None:
    labels_HW = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 4, (60, 80)), 5, 0), 5, 1).astype(np.uint8)
    mixed_HW = denoising.noisy(labels_HW, 4, Noise(factor=5, flip=0.3), np.random.default_rng(1))
    blocks = mixed_HW.reshape(60, 5, 80, 5)
    assert (blocks == blocks[:, :1, :, :1]).all()
    changed = (mixed_HW != labels_HW).mean()
    assert changed == pytest.approx(0.3, abs=0.03)
    assert mixed_HW.max() < 4
    found = np.bincount(mixed_HW[(labels_HW == 2) & (mixed_HW != 2)], minlength=4)
    assert found[2] == 0
    assert found[[0, 1, 3]].min() > 0.25 * found.sum()  # any other class, about as often
    assert (denoising.noisy(labels_HW, 4, Noise(factor=5, flip=0), np.random.default_rng(1)) == labels_HW).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 16), (3, 40)])
def test_noise_takes_any_size_and_gives_void_a_class(size: tuple[int, int]) -> None:
    mixed_HW = denoising.noisy(np.full(size, 255, np.uint8), 3, Noise(), np.random.default_rng(0))
    assert mixed_HW.shape == size
    assert mixed_HW.max() < 3


def test_blocks_are_the_labels_of_their_middles() -> None:
    labels_HW = np.zeros((16, 16), np.uint8)
    labels_HW[4, 12] = 1
    mixed_HW = denoising.noisy(labels_HW, 2, Noise(factor=8, flip=0), np.random.default_rng(0))
    assert mixed_HW[:8, 8:].all()
    assert mixed_HW.sum() == 64


def test_the_unary_has_its_confidence() -> None:
    probabilities_KHW = denoising.unary(np.array([[0, 2]], np.uint8), 3, 0.7).exp()
    np.testing.assert_allclose(probabilities_KHW[:, 0, 0], [0.7, 0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(probabilities_KHW[:, 0, 1], [0.15, 0.15, 0.7], rtol=1e-6)


def test_a_window_as_large_as_the_image_is_the_dense_crf_without_approximation() -> None:
    """Mean field in float64, pixel by pixel: scores = U + M, both kernels normalised, of the constants of FullCRF."""
    random = np.random.default_rng(0)
    image_HW3, (H, W), K = random.integers(0, 60, (5, 6, 3)).astype(np.uint8), (5, 6), 3
    logits_KHW = denoising.unary(random.integers(0, K, (H, W)).astype(np.uint8), K, 0.6)
    places = np.stack(np.mgrid[:H, :W], -1).reshape(-1, 2).astype(float)
    colours = image_HW3.reshape(-1, 3).astype(float)

    def kernel(features: np.ndarray) -> np.ndarray:
        values = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        roots = values.sum(1) ** -0.5
        return roots[:, None] * values * roots

    near, alike = kernel(places / 3), kernel(np.concatenate([places / 80, colours / 13], 1))
    u_KN = logits_KHW.double().numpy().reshape(K, -1)
    q_KN = np.exp(2 * u_KN) / np.exp(2 * u_KN).sum(0)
    for _ in range(5):
        scores_KN = u_KN + 3 * q_KN @ near + 10 * q_KN @ alike
        q_KN = np.exp(scores_KN) / np.exp(scores_KN).sum(0)
    found_KN = denoising.windowed(logits_KHW, image_HW3, 13, blur=1).double().numpy().reshape(K, -1)
    np.testing.assert_allclose(found_KN - found_KN.mean(0), scores_KN - scores_KN.mean(0), atol=1e-3)


def test_a_crf_that_has_not_been_trained_is_conv11() -> None:
    random = np.random.default_rng(1)
    image_HW3 = random.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    logits_KHW = denoising.unary(random.integers(0, 4, (24, 32)).astype(np.uint8), 4, 0.7)
    crf = denoising.module(4, compatibility=False).eval()
    with torch.no_grad():
        found = crf(logits_KHW[None], denoising.pixels(image_HW3) / 255, None)[0][0]
    torch.testing.assert_close(found, denoising.windowed(logits_KHW, image_HW3, 11), rtol=1e-4, atol=1e-3)


def test_the_command_compares_trains_and_draws(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.stage("denoise", "--images", "3", "--steps", "2", "--factor", "4") == 0
    results = json.loads(Path("denoise/table.json").read_text())
    assert set(results["methods"]) == {
        "unary", "FullCRF", "Conv5", "Conv7", "Conv11", "Conv13", "Conv11, trained", "Conv11+C, trained",
    }  # fmt: skip
    assert results["images"] == 3
    assert results["methods"]["Conv7"]["accuracy"] > results["methods"]["unary"]["accuracy"] + 0.02
    assert results["learned"]["Conv11, trained"]["theta_beta"] != pytest.approx(13, abs=1e-3)
    table = Path("denoise/table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| 86.60 | 51.87 | 68 |" in table
    for path in Path("denoise").glob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert len(list(Path("denoise").glob("denoising-*.svg"))) == 2
    first = results["methods"]["Conv7"]["miou"]
    assert project.stage("denoise", "--images", "3", "--steps", "0", "--factor", "4") == 0
    again = json.loads(Path("denoise/table.json").read_text())["methods"]
    assert "Conv11, trained" not in again
    assert again["Conv7"]["miou"] == first  # the noise is the seed's


@pytest.mark.parametrize("wrong", [("--flip", "2"), ("--factor", "0"), ("--confidence", "1"), ("--images", "-1")])
def test_numbers_out_of_range_are_one_line(wrong: tuple[str, str], project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.stage("denoise", *wrong) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --factor must be at least 1")
    assert line.count("\n") == 1
