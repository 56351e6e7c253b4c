"""Figures of the heads and of CAR show the networks' own maps, attention, relations and flow."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.figure_runs import run_of, shot_of
from scipy import ndimage

from models.heads.decoupled import BodyEdge
from models.segmenter import build
from pipeline.data import prepared
from pipeline.figures import caa, car, choose, decoupled, ksac
from pipeline.figures.material import Run, load_shot, look
from pipeline.settings import config


def test_maps_of_rates_are_dilated_convolutions_norm_and_relu(at: Path) -> None:
    run, shot = run_of("ksac"), shot_of()
    maps = ksac.maps_of(run, shot)
    assert list(maps) == [1, 3, 5]
    seen = look(run, shot, ["head.pyramid"])
    x_BCHW, pyramid = seen.inputs["head.pyramid"][0], run.model.get_submodule("head.pyramid")
    for number, (rate, values_CHW) in enumerate(maps.items()):
        norm = pyramid.norms[number][0]
        raw = F.conv2d(x_BCHW, pyramid.convs[0].weight, padding=rate, dilation=rate)
        scaled = (raw - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        wanted = (scaled * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
        np.testing.assert_allclose(values_CHW, wanted[0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(sum(maps.values()), seen.outputs["head.pyramid"][0], atol=1e-5)
    assert list(ksac.maps_of(run_of("deeplab"), shot)) == [1, 2]


def test_shared_kernels_show_the_same_channels_and_mosaics_hold_every_map() -> None:
    maps = [np.random.default_rng(seed).random((40, 4, 6)).astype(np.float32) for seed in range(2)]
    maps[0][7] *= 50
    one, other = ksac.liveliest(maps, 25)
    assert one[0] == 7
    assert one.tolist() == other.tolist()
    square = ksac.mosaic(maps[0][one])
    assert square.shape == (5 * 5 - 1, 5 * 7 - 1)
    assert np.isnan(square[4]).all()
    assert (np.nanmin(square), np.nanmax(square)) == (0, 1)
    assert np.isnan(ksac.mosaic(maps[0][:3])[5:]).all()
    assert not np.nanmax(ksac.mosaic(np.ones((1, 4, 6), np.float32)))


@pytest.mark.parametrize("form", ["axial", "full"])
def test_attention_and_gates_make_the_heads_own_output(form: str, at: Path) -> None:
    run, shot = run_of("caa"), shot_of()
    if form == "full":
        head = caa_head(run, form)
        run = replace(run, network=replace(run.network, model=head))
    made, gates = caa.parts(run)
    seen = look(run, shot, [*made, *gates, caa.ATTENTION])
    value_CHW = seen.outputs[f"{caa.ATTENTION}.value"][0]
    gate_1CHW = caa.gate_of(seen, gates)
    for place in [(0, 0), (1, 2), (value_CHW.shape[1] - 1, value_CHW.shape[2] - 1)]:
        weights_HW = caa.attention_at(seen, place)
        assert weights_HW.sum() == pytest.approx(1, abs=1e-5)
        mixed_C = (value_CHW * torch.from_numpy(weights_HW)).sum((1, 2)) * gate_1CHW[0, :, place[0], place[1]]
        torch.testing.assert_close(mixed_C, seen.outputs[caa.ATTENTION][0, :, place[0], place[1]], rtol=1e-4, atol=1e-5)


def caa_head(run: Run, form: str) -> Any:
    options = {**run.config.head.options, "attention": form}
    torch.manual_seed(3)
    return build(replace(run.config, head=replace(run.config.head, options=options)), len(run.prepared.classes)).eval()


def test_each_attention_alone_changes_nothing_else_and_leaves_no_trace(at: Path) -> None:
    run, shot = run_of("caa"), shot_of()
    before = look(run, shot).output.logits_BKhw
    found = caa.effects(run, shot)
    gates = caa.parts(run)[1]
    torch.testing.assert_close(found.both.output.logits_BKhw, before)
    torch.testing.assert_close(look(run, shot).output.logits_BKhw, before)
    plain = found.both.outputs[caa.ATTENTION] / caa.gate_of(found.both, gates)
    means = math.prod(found.both.outputs[name].mean().item() for name in gates)
    torch.testing.assert_close(found.spatial.outputs[caa.ATTENTION], plain * means, rtol=1e-3, atol=1e-6)
    values = found.both.outputs[f"{caa.ATTENTION}.value"] * caa.gate_of(found.both, gates)
    torch.testing.assert_close(found.channel.outputs[caa.ATTENTION], values)
    assert not torch.equal(found.channel.output.logits_BKhw, before)
    constant = replace(
        found.both, outputs={**found.both.outputs, **{name: torch.full_like(found.both.outputs[name], 0.5) for name in gates}}
    )
    assert caa.turned(constant, gates).max() < 1e-5


def test_a_relation_is_a_row_of_the_products_of_all_pixels(at: Path) -> None:
    run = run_of("car")
    seen = look(run, shot_of(), ["projection", "projection.linear"])
    features_CHW = seen.outputs["projection"][0][0]
    assert torch.equal(features_CHW, seen.outputs["projection.linear"][0])  # z, which CAR regularises
    gram_NN = features_CHW.flatten(1).T @ features_CHW.flatten(1)
    width = features_CHW.shape[2]
    np.testing.assert_allclose(car.relation(features_CHW, (2, 3)).ravel(), gram_NN[2 * width + 3], rtol=1e-4, atol=1e-5)


def test_dependency_is_the_softmax_over_classes_that_are_there(at: Path) -> None:
    run, params = run_of("car"), config.load()
    sample = choose.sample(params, prepared.read())
    assert len(sample.pairs) == 4
    centres_KC, counts_K = car.centres(run, sample)
    brute: dict[int, list[np.ndarray]] = {}
    for pair in sample.pairs:
        shot = load_shot(pair, (0, 0), None)
        z_CHW = look(run, shot).output.features_BChw[0].numpy()
        for row in range(z_CHW.shape[1]):
            for column in range(z_CHW.shape[2]):
                y = round(row * (shot.size[0] - 1) / (z_CHW.shape[1] - 1))
                x = round(column * (shot.size[1] - 1) / (z_CHW.shape[2] - 1))
                brute.setdefault(int(shot.labels_HW[y, x]), []).append(z_CHW[:, row, column])
    for class_, rows in brute.items():
        if class_ < len(counts_K):
            assert counts_K[class_] == len(rows)
            np.testing.assert_allclose(centres_KC[class_], np.mean(rows, 0), rtol=1e-4, atol=1e-5)
    counts_K[1] = 0
    values_KK = car.dependency(centres_KC, counts_K)
    there = np.flatnonzero(counts_K)
    assert np.isnan(values_KK[1]).all()
    assert np.isnan(values_KK[:, 1]).all()
    np.testing.assert_allclose(values_KK[np.ix_(there, there)].sum(1), 1)
    one = there[0]
    energies = [math.exp(float(centres_KC[one] @ centres_KC[other]) / math.sqrt(centres_KC.shape[1])) for other in there]
    np.testing.assert_allclose(values_KK[one, there], np.array(energies) / sum(energies), rtol=1e-6)


def test_the_flow_is_the_warp_that_makes_the_body() -> None:
    torch.manual_seed(2)
    module = BodyEdge(5).double().eval()
    with torch.no_grad():
        module.flow.weight.mul_(20)
    features, kept = torch.randn(1, 5, 9, 12, dtype=torch.float64), []
    module.flow.register_forward_hook(lambda module, given, made: kept.append(made))
    body = module(features)[0][0].detach().numpy()
    moved_2hw = decoupled.displacement(kept[0][0].detach())
    assert np.abs(moved_2hw).max() > 0.5
    rows, columns = np.mgrid[:9, :12]
    places = np.stack([rows + moved_2hw[1], columns + moved_2hw[0]])
    for channel in range(5):
        padded = np.pad(features[0, channel].numpy(), 30)
        np.testing.assert_allclose(ndimage.map_coordinates(padded, places + 30, order=1), body[channel], atol=1e-9)


def test_components_are_those_of_the_covariance() -> None:
    features = torch.randn(6, 7, 9, dtype=torch.float64) * torch.tensor([5.0, 3, 2, 0.1, 0.1, 0.1])[:, None, None]
    colours_HW3, share = decoupled.components(features)
    rows_NC = features.flatten(1).T.numpy()
    values, axes = np.linalg.eigh(np.cov(rows_NC.T))
    assert share == pytest.approx(values[::-1][:3].sum() / values.sum())
    for index in range(3):
        scores_N = (rows_NC - rows_NC.mean(0)) @ axes[:, -1 - index]
        inside = (colours_HW3[..., index].ravel() > 0) & (colours_HW3[..., index].ravel() < 1)
        assert abs(np.corrcoef(scores_N[inside], colours_HW3[..., index].ravel()[inside])[0, 1]) == pytest.approx(1)
    assert decoupled.components(torch.zeros(2, 3, 4))[1] == 0  # flat, and of fewer channels than colours


def test_the_merged_feature_is_edge_plus_body(at: Path) -> None:
    run = run_of("decoupled")
    seen = look(run, shot_of(), ["head.context", "head.body_edge", "head.edge", "head.join"])
    joined_CHW = seen.inputs["head.join"][0][0]
    body_CHW, rest_CHW = (part[0] for part in seen.outputs["head.body_edge"])
    torch.testing.assert_close(body_CHW + rest_CHW, seen.outputs["head.context"][0])
    up = F.interpolate(body_CHW[None], joined_CHW.shape[-2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(joined_CHW[len(joined_CHW) // 2 :], (seen.outputs["head.edge"] + up)[0])
