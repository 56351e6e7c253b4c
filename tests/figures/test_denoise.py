"""ConvCRF's synthetic task: the noise is what is said of it, and the CRFs that are compared are the same but for their windows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.project import Project
from makers.stored import put_pair, textured
from PIL import Image
from scipy import ndimage

from pipeline.data import prepared
from pipeline.figures import denoising
from pipeline.figures.denoising import Noise


def test_without_exchange_labels_are_made_small_and_large_again() -> None:
    """Bilinearly, by SciPy: a small pixel is the mean of the four in the middle of its block."""
    labels_HW = np.random.default_rng(0).integers(0, 3, (32, 48)).astype(np.uint8)
    noisy_KHW = denoising.noisy(labels_HW, 3, Noise(factor=8, flip=0), np.random.default_rng(0))
    rows, columns = np.meshgrid((np.arange(32) + 0.5) / 8 - 0.5, (np.arange(48) + 0.5) / 8 - 0.5, indexing="ij")
    for class_ in range(3):
        own_HW = (labels_HW == class_).astype(float)
        small_hw = sum(own_HW[row::8, column::8] for row in (3, 4) for column in (3, 4)) / 4
        wanted_HW = ndimage.map_coordinates(small_hw, [rows, columns], order=1, mode="nearest")
        np.testing.assert_allclose(noisy_KHW[class_], wanted_HW, atol=1e-6)


def test_noise_exchanges_the_wanted_share_for_any_class() -> None:
    labels_HW = np.full((400, 400), 2, np.uint8)
    noisy_KHW = denoising.noisy(labels_HW, 4, Noise(factor=5, flip=0.4), np.random.default_rng(1))
    np.testing.assert_allclose(noisy_KHW.sum(0), 1, atol=1e-6)
    middles_Khw = noisy_KHW[:, 2::5, 2::5].numpy()  # each a small pixel's own value
    assert set(np.unique(middles_Khw.round(6))) == {0, 1}
    shares_K = middles_Khw.mean((1, 2))
    np.testing.assert_allclose(shares_K, [0.1, 0.1, 0.7, 0.1], atol=0.02)  # what is exchanged may be its own class again
    between_HW = noisy_KHW[:, 2:-2, 2:-2].amax(0)
    assert ((between_HW > 0.01) & (between_HW < 0.99)).any()
    again_KHW = denoising.noisy(labels_HW, 4, Noise(factor=5, flip=0.4), np.random.default_rng(1))
    assert torch.equal(noisy_KHW, again_KHW)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 16), (3, 40)])
def test_noise_takes_any_size_and_gives_void_a_class(size: tuple[int, int]) -> None:
    noisy_KHW = denoising.noisy(np.full(size, 255, np.uint8), 3, Noise(), np.random.default_rng(0))
    assert noisy_KHW.shape == (3, *size)
    np.testing.assert_allclose(noisy_KHW.sum(0), 1, atol=1e-6)


def test_void_beside_a_class_leaves_it_as_sure_as_it_is() -> None:
    labels_HW = np.full((16, 16), 255, np.uint8)
    labels_HW[:, 3::8] = 1  # half of what a small pixel is made of
    noisy_KHW = denoising.noisy(labels_HW, 3, Noise(factor=8, flip=0), np.random.default_rng(0))
    np.testing.assert_allclose(noisy_KHW[1], 1)


def test_the_unary_has_its_confidence() -> None:
    probabilities_KHW = denoising.unary(torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]], [[0.0, 0.0]]]), 0.7).exp()
    np.testing.assert_allclose(probabilities_KHW[:, 0, 0], [0.7, 0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(probabilities_KHW[:, 0, 1], [0.425, 0.425, 0.15], rtol=1e-6)


def test_a_window_as_large_as_the_image_is_the_dense_crf_without_approximation() -> None:
    """Mean field in float64, pixel by pixel: scores = U + M, both kernels normalised, of the constants of FullCRF."""
    random = np.random.default_rng(0)
    image_HW3, (H, W), K = random.integers(0, 60, (5, 6, 3)).astype(np.uint8), (5, 6), 3
    logits_KHW = denoising.unary(denoising.one_hot(random.integers(0, K, (H, W)), K), 0.6)
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
    logits_KHW = denoising.unary(denoising.one_hot(random.integers(0, 4, (24, 32)), 4), 0.7)
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


@pytest.mark.parametrize("wrong", [("--flip", "2"), ("--factor", "0"), ("--confidence", "1"), ("--images", "-1"), ("--seed", "-1")])
def test_numbers_out_of_range_are_one_line(wrong: tuple[str, str], project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.stage("denoise", *wrong) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --factor must be at least 1")
    assert line.count("\n") == 1


def test_images_without_labels_and_other_data_are_one_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = prepared.read()
    blank = put_pair("blank", textured(0, 48, 64), np.full((48, 64), 255, np.uint8))
    prepared.write(replace(manifest, splits={**manifest.splits, "val": (blank,)}))
    assert project.stage("denoise", "--images", "1", "--steps", "0") == 2
    assert "split val of scenes has no labels in the 1 images that were taken" in capsys.readouterr().err
    prepared.write(replace(manifest, dataset="camvid"))
    assert project.stage("denoise") == 2
    assert "data/prepared.json is of camvid, but params.yaml says scenes" in capsys.readouterr().err
