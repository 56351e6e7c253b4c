"""Augmentation: image, labels and superpixels stay aligned, and what is drawn is what was asked for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from pipeline.settings.schema import Data, Jitter
from pipeline.training import augment
from pipeline.training.augment import Geometry


def data(crop=(32, 48), scale=(0.5, 2.0), ratio_base=None, jitter=None) -> Data:
    return Data(dataset="scenes", root="x", crop=crop, scale=scale, ratio_base=ratio_base, jitter=jitter)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def mmsegmentation_size(height, width, base, scale):
    """The size that its RandomResize with keep_ratio gives, by its documentation: base times scale, then fitted."""
    long, short = max(base) * scale, min(base) * scale
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (1024, 2048), (64, 64), (100, 2000)])
@pytest.mark.parametrize("base", [(2048, 512), (512, 2048), (520, 520)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_ratio_base_is_a_keep_ratio_fit(shape, base, scale):
    assert augment.scaled_size(*shape, scale, base) == mmsegmentation_size(*shape, base, scale)


def test_without_ratio_base_an_image_keeps_its_own_size():
    assert augment.scaled_size(375, 500, 1.0, None) == (375, 500)
    assert augment.scaled_size(375, 500, 0.5, None) == (188, 250)
    assert augment.scaled_size(1, 3, 0.1, None) == (1, 1)


SIDES = st.integers(1, 40)


@settings(max_examples=200, deadline=None)
@given(st.tuples(SIDES, SIDES), st.floats(0.3, 3.0), st.tuples(SIDES, SIDES), st.integers(0, 2**32))
def test_a_map_is_scaled_cropped_and_flipped_as_if_it_had_been_scaled_whole(shape, scale, crop, seed):
    labels = rng(0).integers(0, 255, shape).astype(np.uint8)
    geometry = augment.draw_geometry(rng(seed), labels, data(crop=crop, scale=(scale, scale)))
    height, width = geometry.scaled
    whole = np.empty((height, width), np.uint8)
    for row, column in np.ndindex(height, width):
        centre = (row + 0.5) * shape[0] / height, (column + 0.5) * shape[1] / width
        whole[row, column] = labels[math.floor(centre[0] + 1e-9), math.floor(centre[1] + 1e-9)]
    expected = whole[geometry.top : geometry.top + crop[0], geometry.left : geometry.left + crop[1]]
    assert np.array_equal(augment.map_view(labels, geometry), expected[:, ::-1] if geometry.flip else expected)
    assert 0 <= geometry.top <= max(0, height - crop[0])
    assert 0 <= geometry.left <= max(0, width - crop[1])


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(20, 60), st.integers(20, 60)), st.floats(0.4, 2.5), st.integers(0, 2**32))
def test_an_image_looks_as_if_it_had_been_scaled_whole(shape, scale, seed):
    image = Image.fromarray(rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    geometry = augment.draw_geometry(rng(seed), np.zeros(shape, np.uint8), data(crop=(17, 23), scale=(scale, scale)))
    whole = np.asarray(image.resize(geometry.scaled[::-1], Image.Resampling.BILINEAR)).astype(float)
    expected = whole[geometry.top : geometry.top + 17, geometry.left : geometry.left + 23]
    expected = expected[:, ::-1] if geometry.flip else expected
    view = augment.image_view(image, geometry)
    assert view.dtype == torch.float32
    difference = np.abs(view.numpy().transpose(1, 2, 0) * 255 - expected)
    assert difference.max() <= 2.01  # grey levels: each direction's pass rounds once
    assert difference.mean() < 0.5


def coded(height: int, width: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of cells, each of its own colour, and the map of the cells' numbers, which the colour encodes."""
    rows, columns = np.arange(height)[:, None] // cell, np.arange(width)[None] // cell
    image = np.stack(np.broadcast_arrays(rows * 20, columns * 20, np.uint8(77)), -1).astype(np.uint8)
    return image, (rows * 12 + columns).astype(np.uint8)


def test_image_labels_and_superpixels_stay_aligned_under_every_draw():
    image, cells = coded(72, 96, 8)
    seen = set()
    for seed in range(150):
        geometry = augment.draw_geometry(rng(seed), cells, data(crop=(40, 56)))
        view = (augment.image_view(Image.fromarray(image), geometry) * 255).round().numpy()
        labels, superpixels = augment.map_view(cells, geometry), augment.map_view(cells.astype(np.int32) * 300, geometry)
        assert np.array_equal(labels.astype(np.int32) * 300, superpixels)
        # Where all neighbours that interpolation reaches lie in one cell the colour is exact and names the cell.
        pure = np.isin(view[0], np.arange(0, 240, 20)) & np.isin(view[1], np.arange(0, 240, 20))
        decoded = view[0] // 20 * 12 + view[1] // 20
        assert pure.mean() > 0.3
        assert np.array_equal(decoded[pure], labels[pure])
        seen.add((geometry.flip, geometry.scaled > (72, 96)))
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_scale_and_position_and_flip_are_uniform():
    draws = [augment.draw_geometry(rng(3, seed), coded(100, 200, 20)[1], data(crop=(20, 20))) for seed in range(600)]
    scales = np.array([geometry.scaled[1] / 200 for geometry in draws])
    assert scales.min() < 0.52
    assert scales.max() > 1.98
    assert abs(scales.mean() - 1.25) < 0.06
    assert abs(np.mean([geometry.flip for geometry in draws]) - 0.5) < 0.07
    places = np.array([geometry.left / (geometry.scaled[1] - 20) for geometry in draws])
    assert places.min() == 0 or places.min() < 0.02
    assert places.max() > 0.98
    assert abs(places.mean() - 0.5) < 0.06


def shares(labels_HW: np.ndarray) -> float:
    """The largest share of one class among labelled pixels; 1 where none is labelled."""
    labelled = labels_HW[labels_HW != 255]
    return 1.0 if not labelled.size else max(np.mean(labelled == label) for label in np.unique(labelled))


def test_a_crop_of_almost_one_class_is_drawn_again():
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 80:120] = 1  # crops of 40 pixels that are not one-sided are rare: about a fifth
    asked = data(crop=(40, 40), scale=(1.0, 1.0))
    limited = [shares(augment.map_view(labels, augment.draw_geometry(rng(seed), labels, asked))) for seed in range(200)]
    free = [shares(labels[:40, left : left + 40]) for left in rng(5).integers(0, 161, 200)]
    assert np.mean(np.array(free) < 0.75) < 0.4
    assert np.mean(np.array(limited) < 0.75) > 0.85


@pytest.mark.parametrize(("one", "other", "ignored", "expected"), [
    (75, 25, 0, True), (74, 26, 0, False), (60, 15, 25, True), (20, 20, 60, False), (0, 0, 100, True), (100, 0, 0, True),
])  # fmt: skip
def test_the_limit_counts_labelled_pixels_only(one, other, ignored, expected):
    labels = np.repeat(np.array([0, 1, 255], np.uint8), (one, other, ignored)).reshape(10, 10)
    assert augment.one_sided(labels) is expected


def test_ten_draws_at_most(monkeypatch):
    counted = []
    monkeypatch.setattr(augment, "one_sided", lambda labels: counted.append(labels.shape) or True)
    augment.draw_geometry(rng(0), np.zeros((90, 90), np.uint8), data(crop=(30, 30), scale=(1.0, 1.0)))
    assert counted == [(30, 30)] * 10


def test_padding_is_at_the_bottom_and_the_right_flipped_or_not():
    image, cells = coded(20, 30, 5)
    for flip in (False, True):
        geometry = Geometry(source=(20, 30), scaled=(20, 30), top=0, left=0, size=(20, 30), flip=flip)
        view = augment.image_view(Image.fromarray(image), geometry)
        padded = augment.padded_image(view, (32, 48), (0.1, 0.2, 0.3))
        labels = augment.padded_map(augment.map_view(cells, geometry), (32, 48), 255)
        superpixels = augment.padded_map(augment.map_view(cells.astype(np.int32), geometry), (32, 48), -1)
        outside = torch.ones(32, 48, dtype=torch.bool)
        outside[:20, :30] = False
        assert torch.equal(padded[:, :20, :30], view)
        assert torch.equal(padded[:, outside], torch.tensor([0.1, 0.2, 0.3])[:, None].expand(3, int(outside.sum())))
        assert labels.dtype == superpixels.dtype == torch.int64
        assert (labels[outside] == 255).all()
        assert (superpixels[outside] == -1).all()
        assert torch.equal(labels[:20, :30], superpixels[:20, :30])
        assert labels[0, 0] == (5 if flip else 0)


def test_jitter_draws_from_its_ranges_in_every_order():
    jitter = Jitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    draws = [augment.draw_jitter(rng(9, seed), jitter) for seed in range(800)]
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.7, 1.3), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)):
        values = np.array([dict(draw)[name] for draw in draws])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.04 * (high - low)
    assert len({tuple(name for name, _ in draw) for draw in draws}) == 24


def test_jitter_leaves_out_what_is_zero():
    assert augment.draw_jitter(rng(0), Jitter()) == []
    assert [name for name, _ in augment.draw_jitter(rng(0), Jitter(hue=0.1))] == ["hue"]


def test_jitter_adjusts_as_it_says():
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(augment.adjusted(image, [("brightness", 1.3)]), (image * 1.3).clamp(0, 1))
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    assert torch.allclose(augment.adjusted(image, [("saturation", 0.8)]), 0.8 * image + 0.2 * grey, atol=1e-3)
    assert torch.allclose(augment.adjusted(image, [("contrast", 0.8)]), 0.8 * image + 0.2 * grey.mean(), atol=1e-3)
    red, green = torch.tensor([1.0, 0, 0])[:, None, None], torch.tensor([0.0, 1, 0])[:, None, None]
    assert torch.allclose(augment.adjusted(red, [("hue", 1 / 3)]), green, atol=1e-5)
    both = augment.adjusted(image, [("contrast", 1.3), ("brightness", 1.2)])
    assert torch.equal(both, functional.adjust_brightness(functional.adjust_contrast(image, 1.3), 1.2))
    assert not torch.allclose(both, augment.adjusted(image, [("brightness", 1.2), ("contrast", 1.3)]))
