"""The papers' figures show the networks' own quantities, from runs that are there; what is wrong is one line."""

import json
import math
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from makers.project import TINY, Project
from makers.stored import put_pair, textured
from PIL import Image
from scipy import ndimage

from models.crf.embedded import MessagePassing
from models.heads.decoupled import BodyEdge
from models.parts.layers import Output, superpixel_mean
from models.segmenter import build
from pipeline.data import prepared
from pipeline.figures import caa, canvas, car, choose, conv_crf, crf_rnn, decoupled, ecrf, ksac, material, panels
from pipeline.figures.material import Run, Seen, Shot, load_run, load_shot, look
from pipeline.figures.table import FIGURES
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.settings import config
from pipeline.settings.schema import FIGURES as FIGURE_NAMES
from pipeline.training.checkpoint import weights_payload

PLAIN: dict[str, Any] = {"crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "none"}
DEEPLAB = {"name": "deeplab", "width": 16, "rates": [1, 2]}
METHODS: dict[str, dict[str, Any]] = {
    "deeplab": {**PLAIN, "head": DEEPLAB},
    "ecrf": {**PLAIN, "head": DEEPLAB, "crf": {"name": "embedded"}, "superpixels": "slic"},
    "joint_crf": {**PLAIN, "head": DEEPLAB, "crf": {"name": "mean_field", "iterations": 2}},
    "conv_crf": {**PLAIN, "head": DEEPLAB, "crf": {"name": "conv", "filter_size": 3}},
    "ksac": {**PLAIN, "head": {"name": "ksac", "width": 8, "rates": [1, 3, 5]}},
    "caa": {**PLAIN, "head": {"name": "caa", "width": 8, "key_width": 4, "output_width": 8}},
    "car": {**PLAIN, "head": DEEPLAB, "loss": {"name": "car"}, "projection": "linear"},
    "decoupled": {**PLAIN, "head": {"name": "decoupled", "width": 16, "rates": [1, 2]}, "loss": {"name": "body_edge"}},
}


@pytest.fixture(scope="module")
def finished(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared project with a run of every method, whose weights are as they were drawn."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared_project, folder, dirs_exist_ok=True)
    params = {**json.loads(json.dumps(TINY)), "methods": METHODS, "evaluations": {"deeplab": {"of": "deeplab"}}}
    Project(folder, params).write()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in METHODS:
            save_weights(Project(folder, params), name)
    return folder


def save_weights(project: Project, name: str) -> None:
    stamped = project.config(name)
    classes = prepared.read().classes
    torch.manual_seed(0)
    state = build(stamped, len(classes)).state_dict()
    for key, tensor in state.items():
        if key.endswith(("running_mean", "compatibility")):
            state[key] = torch.randn_like(tensor)
    with files.replacing(Path(f"runs/{name}/weights/seed-0.pt")) as file:
        torch.save(weights_payload(stamped, classes, "0" * 16, state), file)


@pytest.fixture
def there(finished: Path, workspace: Path) -> Project:
    """The finished project as the current folder, with data and weights of its own."""
    shutil.copytree(finished, workspace, dirs_exist_ok=True)
    return Project(workspace, yaml.safe_load((workspace / "params.yaml").read_text()))


@pytest.fixture
def at(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished project as the current folder; nothing may be written into it."""
    monkeypatch.delenv("DATA_STORE", raising=False)
    monkeypatch.chdir(finished)
    return finished


def run_of(name: str) -> Run:
    return load_run(name, None, prepared.read())


def shot_of(pixel: tuple[int, int] | None = (20, 30)) -> Shot:
    return load_shot(prepared.read().splits["val"][0], pixel, None)


# The quantities.


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


def test_the_telling_pixel_is_the_midst_of_a_small_object() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:19, 20:29] = 1  # the object
    labels[30:32, 5:7] = 2  # a speck
    labels[:, 50:] = 255
    assert material.telling_pixel(labels) == (14, 24)
    labels[:8, :8] = 3  # smaller, but cut off by the image's border
    assert material.telling_pixel(labels) == (14, 24)
    assert material.telling_pixel(np.full((4, 6), 255, np.uint8)) == (2, 3)
    row, column = material.telling_pixel(np.eye(6, dtype=np.uint8))
    assert 0 <= row < 6
    assert 0 <= column < 6


def test_a_pixel_lies_in_the_cell_of_the_map_that_covers_it() -> None:
    pair = prepared.Pair("x", "x", "x", 48, 64)
    shot = Shot(pair, Image.new("RGB", (64, 48)), np.zeros((48, 64), np.uint8), (47, 16), None)
    assert shot.at((12, 16)) == (11, 4)
    assert shot.at((48, 64)) == (47, 16)


# The sheets.

HOSTILE = ["$x_{1}$ & <b>bold</b>", "a\nb\tc", "street 道路", "道路", "x" * 300, "", "%s{}\\frac"]


def test_names_are_shown_as_they_are_and_short() -> None:
    shown = canvas.named(HOSTILE)
    assert shown[0] == HOSTILE[0]
    assert shown[1] == "a b c"
    assert shown[2] == "street ??"
    assert shown[3] == "class 3"
    assert len(shown[4]) == canvas.LONGEST
    assert shown[5] == "class 5"
    assert len(set(canvas.named([f"{'y' * 40} {number}" for number in range(150)]))) == 150
    with canvas.style():
        sheet = panels.matrices(1, HOSTILE, ("Title $x", "of " + "long " * 100))
        panels.matrix(sheet, sheet.panels[0][0], np.eye(7), HOSTILE, "$\\frac", limits=(0, 1), label="$")
        canvas.legend(sheet, HOSTILE, [(0, 0, 0)] * 7, [np.arange(7, dtype=np.uint8)[None]])
        sheet.figure.canvas.draw()


def test_a_title_is_no_wider_than_its_panel() -> None:
    with canvas.style():
        sheet = canvas.sheet(1, 3, ("Title", "line"))
        for panel, text in zip(sheet.panels[0], ("short", "of a middling length, as a class's name", "very long " * 12), strict=True):
            canvas.heading(panel, text)
        sheet.figure.canvas.draw()
        titles = [panel.title for panel in sheet.panels[0]]
        room = sheet.panels[0][0].get_window_extent().width
        assert all(title.get_window_extent().width <= 1.02 * room for title in titles)
    assert [title.get_text()[-1] for title in titles] == ["t", "e", "…"]
    assert [title.get_fontsize() for title in titles] == [8, pytest.approx(7, abs=1), 6]


def test_a_large_image_keeps_its_place_and_is_drawn_with_what_can_be_seen(tmp_path: Path) -> None:
    """Its outline lies where its regions meet, and stripes of one pixel become grey instead of a pattern."""
    image_HW3 = np.zeros((1200, 2400, 3), np.uint8)
    image_HW3[:, ::2] = 200
    regions_HW = np.zeros((1200, 2400), np.uint8)
    regions_HW[:, 1200:] = 1
    with canvas.style():
        sheet = canvas.sheet(1, 1, ("Title", "line"), shape=0.5)
        panel = sheet.panels[0][0]
        panels.photograph(panel, image_HW3, "image")
        panels.mark(panel, (600, 1800))
        canvas.outline(panel, regions_HW)
        assert panel.images[0].get_extent() == [0, 2400, 1200, 0]
        assert max(panel.images[0].get_size()) == canvas.FINEST
        line = panel.patches[0].get_path().vertices
        assert set(line[:, 0]) == {1200}
        assert line[:, 1].max() == 1200
        canvas.save(sheet, tmp_path / "large")
    with Image.open(tmp_path / "large.png") as image:
        values = np.asarray(image.convert("L"))[220:320, 30:180].astype(int)
    assert np.ptp(values) < 12
    assert values.mean() == pytest.approx(100, abs=6)


def test_150_names_do_not_overlap_and_the_picture_stays_of_a_usable_size(tmp_path: Path) -> None:
    names = [f"class number {number}" for number in range(150)]
    with canvas.style():
        sheet = panels.matrices(1, names, ("Title", "line"))
        panels.matrix(sheet, sheet.panels[0][0], np.eye(150), names, "title", limits=(0, 1))
        labels = [text.get_window_extent() for text in sheet.panels[0][0].get_yticklabels()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(canvas, "MOST", 500)
            canvas.save(sheet, tmp_path / "large")
    heights = sorted((box.y0, box.y1) for box in labels)
    assert all(below[1] <= above[0] for below, above in pairwise(heights))
    assert min(box.x0 for box in labels) >= 0
    assert max(sheet.figure.get_size_inches()) < 24
    with Image.open(tmp_path / "large.png") as image:
        assert 490 < max(image.size) <= 500


def test_a_sheet_that_grows_keeps_its_panels_shapes() -> None:
    with canvas.style():
        sheet = canvas.sheet(2, 2, ("Title", "line"), shape=0.5)
        before = [panel.get_window_extent().size.tolist() for row in sheet.panels for panel in row]
        canvas.legend(sheet, ["a"] * 3, [(0, 0, 0)] * 3, [np.array([[0, 2, 255]], np.uint8)])
    assert [panel.get_window_extent().size.tolist() for row in sheet.panels for panel in row] == [pytest.approx(size) for size in before]
    assert before[0][1] / before[0][0] == pytest.approx(0.5)


# The command.


def test_all_figures_are_made_listed_and_made_alike_again(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert there.stage("figures") == 0
    folder = there.folder / "figures"
    index = (folder / "index.md").read_text()
    pngs = sorted(folder.glob("*.png"))
    assert {name for name in FIGURE_NAMES if any(png.name.startswith(f"{name}-") for png in pngs)} == set(FIGURE_NAMES)
    for png in pngs:
        with Image.open(png) as image:
            image.load()
            assert min(image.size) > 300
        assert f"({png.name})" in index
        assert ET.parse(png.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert "E-CRF (ICLR 2023), Fig. 4" in index
    assert "left out" not in capsys.readouterr().out
    assert sorted(path.stem for path in folder.glob("*.svg")) == [png.stem for png in pngs]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "flow-gone-image.png").write_bytes(b"stale")
    (folder / "own.txt").write_text("not ours")
    (folder / "flows.png").write_bytes(b"not ours")
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "ecrf")}
    assert there.stage("figures") == 0
    left = {path.name for path in folder.iterdir()}
    others = {"index.md", "own.txt", "flows.png"}
    assert left == {name for name in before if name.startswith(("class-weights", "messages"))} | others
    assert all((folder / name).read_bytes() == before[name] for name in left - others)
    said = capsys.readouterr().out
    assert "left out: flow: no run has head decoupled" in said
    assert "flow: no run has head decoupled" in (folder / "index.md").read_text()


def test_options_draw_a_figure_otherwise_into_another_folder(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    image = prepared.read().splits["val"][2].name
    wanted = ("--only", "compatibility", "flow", "--images", image, "--pixel", "3", "4")
    assert there.stage("figures", *wanted) == 2
    assert "figures/ holds what params.yaml says" in capsys.readouterr().err
    assert there.stage("figures", *wanted, "--out", "scratch") == 0
    assert {path.name for path in Path("scratch").glob("*.svg")} == {f"flow-decoupled-{image}.svg", "compatibility-joint_crf.svg"}
    assert not Path("figures").exists()


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"image": 2}, ["figures.image is unknown", "did you mean images"]),
    "unknown figure": ({"runs": {"flows": "decoupled"}}, ["figures.runs: 'flows'", "did you mean flow"]),
    "unknown run": ({"runs": {"flow": "decopled"}}, ["figures.runs.flow", "did you mean decoupled"]),
    "run without it": ({"runs": {"flow": ["ecrf"]}}, ["figures.runs.flow: ecrf does not have head decoupled; runs that do: decoupled"]),
    "unknown baseline": ({"baseline": "dplab"}, ["figures.baseline", "did you mean deeplab"]),
    "unknown image": ({"images": ["val-9"]}, ["figures.images: the split has no image 'val-9'", "known: ", "val-000001"]),
    "no images": ({"images": 0}, ["figures.images"]),
    "pixel outside": ({"pixel": [47, 64]}, ["figures.pixel: [47, 64] is outside image", "48 x 64"]),
    "pixel of one number": ({"pixel": [3]}, ["figures.pixel"]),
    "unknown split": ({"split": "tset"}, ["has no split 'tset'; known: "]),
    "unknown seed": ({"seed": 7}, ["figures.seed: run", "has no seed 7; known: 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    settings, words = MISTAKES[mistake]
    there.params["figures"] = settings
    assert there.stage("figures") == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert not list(Path().glob("figures/*.png"))


def test_what_is_not_finished_waits_and_says_what_to_run(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "decoupled", "joint_crf")}
    shutil.rmtree("runs/decoupled")
    assert there.stage("figures") == 0
    said = capsys.readouterr().out
    assert (
        "left out: flow: run decoupled is not finished (runs/decoupled/weights has no weights): run `uv run dvc repro train@decoupled`"
        in said
    )
    assert [path.name for path in Path("figures").glob("*.png")] == ["compatibility-joint_crf.png"]
    there.params["figures"] = {"runs": {"flow": "decoupled"}}
    assert there.stage("figures") == 2
    assert "error: run decoupled is not finished" in capsys.readouterr().err
    there.params["figures"] = {}
    shutil.rmtree("runs/joint_crf")
    assert there.stage("figures") == 2
    assert "run `uv run dvc repro train@" in capsys.readouterr().err


def test_runs_of_other_data_and_damaged_ones_are_refused(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "joint_crf")}
    path = Path("runs/joint_crf/weights/seed-0.pt")
    payload = torch.load(path, weights_only=True)
    for change, words in (
        ({"config": {**payload["config"], "data": {**payload["config"]["data"], "dataset": "camvid"}}}, "was trained on camvid"),
        ({"classes": ["only"]}, "has other classes"),
    ):
        torch.save({**payload, **change}, path)
        assert there.stage("figures") == 2
        line = capsys.readouterr().err
        assert words in line
        assert "run `uv run dvc repro train@joint_crf`" in line
        assert line.count("\n") == 1
    path.write_bytes(path.read_bytes()[:1000])
    assert there.stage("figures") == 2
    assert "damaged" in capsys.readouterr().err


def test_weights_of_another_method_by_that_name_are_refused(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("runs/deeplab/weights/seed-0.pt", "runs/joint_crf/weights/seed-0.pt")
    assert there.stage("figures", "--only", "compatibility", "--out", "scratch") == 2
    assert "was trained without crf mean_field" in capsys.readouterr().err
    shutil.copy("runs/decoupled/weights/seed-0.pt", "runs/deeplab/weights/seed-0.pt")
    assert there.stage("figures", "--only", "rates", "--out", "scratch") == 2
    line = capsys.readouterr().err
    assert "runs/deeplab/weights was trained as a method that figure rates cannot have for its baseline" in line
    assert "run `uv run dvc repro train@deeplab`" in line


def test_images_without_labels_are_refused_and_a_sample_of_one_class_leaves_out_what_it_cannot_show(
    there: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("deeplab", "ecrf", "car")}
    manifest = prepared.read()
    blank, road = (put_pair(name, textured(0, 48, 64), np.full((48, 64), id_, np.uint8)) for name, id_ in (("blank", 255), ("road", 2)))
    prepared.write(replace(manifest, splits={**manifest.splits, "val": (blank,)}))
    assert there.stage("figures") == 2
    assert "the chosen images of split val have no labels (blank): choose others" in capsys.readouterr().err
    prepared.write(replace(manifest, splits={**manifest.splits, "val": (road,)}))
    assert there.stage("figures", "--only", "class-weights", "dependencies", "--out", "scratch") == 0
    assert "left out: class-weights-ecrf: no two classes touch in 1 images of val" in capsys.readouterr().out
    assert [path.name for path in Path("scratch").glob("*.png")] == ["dependencies-car.png"]


def test_odd_sizes_and_options_are_drawn_too(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """What a paper's figure does not have: no superpixels, other rates than the baseline's, +C, images of any size, void."""
    methods = there.params["methods"]
    methods["ecrf"]["crf"] = {"name": "embedded", "superpixel_weight": 0, "compatibility": "pair", "normalization": "absolute"}
    methods["ecrf"]["superpixels"] = "none"
    methods["ksac"]["head"]["shared"] = False
    methods["conv_crf"]["crf"] |= {"compatibility": True, "stride": 2}
    there.params["methods"] = {name: methods[name] for name in ("deeplab", "ecrf", "ksac", "conv_crf")}
    for name in ("ecrf", "ksac", "conv_crf"):
        save_weights(there, name)
    manifest = prepared.read()
    labels = [np.arange(height * width).reshape(height, width) * 4 // (height * width) for height, width in ((33, 90), (150, 31))]
    labels[0][:, 40:60] = 255
    pairs = tuple(put_pair(f"$_{{{n}}} <i>&", textured(n, *ids.shape), ids.astype(np.uint8)) for n, ids in enumerate(labels))
    prepared.write(replace(manifest, splits={**manifest.splits, "val": pairs}))
    there.params["figures"] = {"images": 2}
    assert there.stage("figures") == 0
    made = {path.stem for path in Path("figures").glob("*.svg")}
    assert {"class-weights-ecrf", "compatibility-conv_crf"} < made
    assert len(made) == 2 + 2 * len(("messages", "rates", "crfs"))
    for path in Path("figures").glob("*.svg"):
        ET.parse(path)
    index = Path("figures/index.md").read_text()
    assert "&lt;i&gt;" in index
    assert "<i>" not in index


def test_a_size_that_a_network_refuses_leaves_out_that_figure_alone(there: Project, capsys: pytest.CaptureFixture[str]) -> None:
    there.params["methods"] = {name: there.params["methods"][name] for name in ("joint_crf", "conv_crf")}
    there.params["evaluations"] = {"joint_crf": {"of": "joint_crf"}}
    there.params["methods"]["conv_crf"]["crf"]["position"] = [32, 48]
    save_weights(there, "conv_crf")
    assert there.stage("figures") == 0
    assert "left out: crfs-conv_crf-" in (said := capsys.readouterr().out)
    assert "position is of 32 x 48 pixels, it cannot filter 48 x 64" in said


def test_the_baseline_is_the_run_most_alike(at: Path) -> None:
    params = config.load()
    by_name = {choice.name: choice for choice in choose.choices(params)[0]}
    for name in ("class-weights", "rates", "relations", "dependencies"):
        assert by_name[name].baseline is not None
        assert by_name[name].baseline.name == "deeplab"
    assert by_name["messages"].baseline is None
    ksac_car = replace(params.methods["car"], name="car", head=params.methods["ksac"].head)
    params = replace(params, methods={**params.methods, "car": ksac_car})
    assert {choice.name: choice.baseline for choice in choose.choices(params)[0]}["relations"].name == "ksac"
    separate = replace(params.methods["ksac"], name="separate", head=replace(params.methods["ksac"].head, options={"shared": False}))
    params = replace(params, methods={**params.methods, "separate": separate}, figures=replace(params.figures, baseline="separate"))
    for settings in (params.figures, replace(params.figures, baseline=None)):  # KSAC's own control, named or not
        by_name = {choice.name: choice for choice in choose.choices(replace(params, figures=settings))[0]}
        assert by_name["rates"].baseline.name == "separate"
    of_itself = replace(params.figures, runs={"rates": ("separate",)})
    by_name = {choice.name: choice for choice in choose.choices(replace(params, figures=of_itself))[0]}
    assert by_name["rates"].baseline.name == "deeplab"


def test_names_are_the_tables_and_reading_settings_needs_neither_torch_nor_matplotlib() -> None:
    assert tuple(FIGURES) == FIGURE_NAMES
    assert all((figure.of_image is None) != (figure.of_sample is None) for figure in FIGURES.values())
    code = "import sys, pipeline.settings.config; print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True).stdout == "[]\n"


def test_params_without_the_section_have_its_defaults(there: Project) -> None:
    del there.params["figures"]
    there.write()
    figures = config.load().figures
    assert (figures.images, figures.pixel, figures.sample, dict(figures.runs)) == (2, None, 100, {})
    there.params["figures"] = {"runs": {"flow": "decoupled"}}
    there.write()
    assert config.load().figures.runs["flow"] == ("decoupled",)
    with pytest.raises(UserError, match=r"params.yaml: figures must be a mapping"):
        config.read_figures(config.Section({"figures": [1]}, Path("params.yaml")), {})
