"""The dense CRF at test time: against its definition, pydensecrf's arrays, and its place in an evaluation."""

import inspect
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.project import Project
from makers.toy import PADDING, Toy, picture, plain_probabilities
from makers.toy import evaluation as toy_evaluation
from PIL import Image

from models.filters import FILTERS
from pipeline.evaluation import cost, dense_crf
from pipeline.evaluation.inference import Network, predict
from pipeline.ground.errors import UserError
from pipeline.settings import config, schema
from pipeline.settings.presets import PRESETS

REFERENCE = Path(__file__).parents[1] / "reference" / "dense_crf_a.npz"  # made with pydensecrf 1.0rc3
SOFT = {"iterations": 2, "smoothness": 0.3, "theta_gamma": 2.5, "appearance": 0.2, "theta_alpha": 4.0, "theta_beta": 40.0}
R101 = {"iterations": 10, "smoothness": 3.0, "theta_gamma": 1.0, "appearance": 4.0, "theta_alpha": 67.0, "theta_beta": 3.0}


def example(classes: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.5), (height, width)).transpose(2, 0, 1)
    coarse = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return probabilities, np.clip(coarse + random.integers(-9, 10, coarse.shape), 0, 255).astype(np.uint8)


def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        return dict(file)


def literal(probabilities: np.ndarray, image: np.ndarray, normalization: str, options: dict[str, Any]) -> np.ndarray:
    """Potts' model with every kernel as an N x N matrix, in float64."""
    classes, height, width = probabilities.shape
    y, x = (axis.ravel().astype(float) for axis in np.mgrid[:height, :width])
    colours = image.reshape(-1, 3).astype(float)
    apart = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    differ = ((colours[:, None] - colours) ** 2).sum(-1)
    near = np.exp(-apart / (2 * options["theta_gamma"] ** 2))
    alike = np.exp(-apart / (2 * options["theta_alpha"] ** 2) - differ / (2 * options["theta_beta"] ** 2))
    energy = -np.log(np.clip(probabilities.reshape(classes, -1).astype(float), 1e-5, 1))
    messages = 0.0
    for step in range(options["iterations"] + 1):
        scores = -energy - (0 if step == 0 else messages)
        q = np.exp(scores - scores.max(0))
        q /= q.sum(0)
        messages = 0.0
        for kernel, weight in ((near, options["smoothness"]), (alike, options["appearance"])):
            if normalization == "rows":
                kernel = kernel / kernel.sum(1, keepdims=True)
            elif normalization == "symmetric":
                kernel = kernel / np.sqrt(kernel.sum(1, keepdims=True) * kernel.sum(1))
            sent = q @ kernel.T
            messages = messages + weight * (sent.sum(0) - sent)  # of all other labels
    return q.reshape(classes, height, width)


@pytest.mark.parametrize("normalization", ["symmetric", "rows", "none"])
@pytest.mark.parametrize("options", [R101, SOFT])
def test_is_the_definition(normalization: str, options: dict[str, Any]) -> None:
    probabilities, image = example(3, 7, 9)
    expected = literal(probabilities, image, normalization, options)
    if options is R101 and normalization == "symmetric":
        np.testing.assert_allclose(dense_crf.dense_crf(probabilities, image), expected, atol=1e-8)  # the defaults
    found = dense_crf.dense_crf(probabilities, image, filtering="exact", normalization=normalization, **options)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert np.abs(found - probabilities).max() > 0.03


@pytest.mark.parametrize("name", ["deeplab_v2_r101", "pydensecrf"])
def test_is_pydensecrfs_but_for_the_lattice_of_the_spatial_kernel(name: str) -> None:
    arrays = reference()
    found = dense_crf.dense_crf(arrays["probabilities"], arrays["image"], filtering="permutohedral", **PRESETS[name])
    assert (found.argmax(0) != arrays[name].argmax(0)).mean() < 0.01
    assert np.abs(found - arrays[name]).mean() < 2e-3
    exact = dense_crf.dense_crf(arrays["probabilities"], arrays["image"], filtering="exact", **PRESETS[name])
    assert (exact.argmax(0) != arrays[name].argmax(0)).mean() < 0.05
    assert (arrays["probabilities"].argmax(0) != arrays[name].argmax(0)).mean() > 0.2


@pytest.mark.parametrize("name", ["deeplab_v2_r101", "pydensecrf"])
def test_is_pydensecrfs_with_both_kernels_on_the_lattice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.crf import mean_field

    arrays, options = reference(), PRESETS[name]
    height, width = arrays["image"].shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    lattice = FILTERS["permutohedral"](torch.stack([x, y]).float().flatten(1)[None] / options["theta_gamma"])
    monkeypatch.setattr(mean_field, "Spatial", lambda *_: lattice)
    found = dense_crf.dense_crf(arrays["probabilities"], arrays["image"], filtering="permutohedral", **options)
    np.testing.assert_allclose(found, arrays[name], atol=1e-4)


def test_agrees_with_pydensecrf_where_it_is_installed() -> None:
    peer = pytest.importorskip("pydensecrf.densecrf")
    probabilities, image = example(6, 45, 61, seed=3)
    crf = peer.DenseCRF2D(61, 45, 6)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(6, -1), np.float32))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    expected = np.array(crf.inference(10)).reshape(6, 45, 61)
    found = dense_crf.dense_crf(probabilities, image, filtering="permutohedral")
    assert (found.argmax(0) != expected.argmax(0)).mean() < 0.03


@pytest.mark.parametrize("filtering", ["exact", "permutohedral"])
def test_gives_back_the_kind_and_type_that_it_got(filtering: str) -> None:
    probabilities, image = example(4, 10, 13)
    expected = dense_crf.dense_crf(probabilities, image, filtering=filtering)
    assert isinstance(expected, np.ndarray)
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.2)):
        given = torch.from_numpy(probabilities).to(dtype)
        before = given.clone()
        for pixels in (image, torch.from_numpy(image)):
            found = dense_crf.dense_crf(given, pixels, filtering=filtering)
            assert (found.dtype, found.device, found.shape) == (dtype, given.device, given.shape)
            assert (found.double() - torch.from_numpy(expected)).abs().mean() < close
        assert torch.equal(given, before)
        assert (found.float().sum(0) - 1).abs().max() < 0.02
    single = dense_crf.dense_crf(probabilities.astype(np.float32), image, filtering=filtering)
    assert single.dtype == np.float32
    odd = np.asfortranarray(probabilities)[:, ::-1]
    odd.flags.writeable = False
    turned = image[::-1]
    turned.flags.writeable = False
    np.testing.assert_array_equal(dense_crf.dense_crf(odd, turned, filtering=filtering)[:, ::-1], dense_crf.dense_crf(
        np.ascontiguousarray(odd), np.ascontiguousarray(turned), filtering=filtering)[:, ::-1])  # fmt: skip


def test_certain_pixels_and_few_classes_stay_finite() -> None:
    hard = np.eye(3)[np.random.default_rng(0).integers(0, 3, (6, 8))].transpose(2, 0, 1)
    flat = np.zeros((6, 8, 3), np.uint8)
    for filtering in ("exact", "permutohedral"):
        found = dense_crf.dense_crf(hard, flat, filtering=filtering)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(dense_crf.dense_crf(np.ones((1, 6, 8)), flat, filtering=filtering), 1)
        assert np.isfinite(dense_crf.dense_crf(np.full((2, 1, 1), 0.5), flat[:1, :1], filtering=filtering)).all()
    start = dense_crf.dense_crf(hard, flat, iterations=0)
    np.testing.assert_allclose(start, np.clip(hard, 1e-5, 1) / (1 + 2e-5))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"probabilities": np.zeros((3, 4))}, "K x H x W"),
        ({"probabilities": np.zeros((3, 0, 5))}, "K x H x W"),
        ({"probabilities": np.ones((1, 4, 5), int)}, "floats"),
        ({"probabilities": [[0.5]]}, "list"),
        ({"probabilities": np.full((2, 4, 5), 0.5).astype("O")}, "object"),
        ({"probabilities": np.full((2, 4, 5), 3.0)}, "logits"),
        ({"probabilities": np.full((2, 4, 5), 0.4)}, "sum to 1"),
        ({"probabilities": np.stack([np.full((4, 5), -0.5), np.full((4, 5), 1.5)])}, "-0.5 to 1.5"),
        ({"probabilities": np.full((2, 4, 5), np.nan)}, "nan"),
        ({"image": np.zeros((4, 6, 3), np.uint8)}, "4 x 5 x 3"),
        ({"image": np.zeros((3, 4, 5), np.uint8)}, "4 x 5 x 3"),
        ({"image": np.zeros((4, 5, 3), np.float32)}, "uint8"),
        ({"iterations": -1}, "iterations"),
        ({"iterations": 2.5}, "iterations"),
        ({"smoothness": -1.0}, "smoothness"),
        ({"appearance": float("nan")}, "appearance"),
        ({"theta_alpha": 0.0}, "theta_alpha"),
        ({"theta_beta": float("inf")}, "theta_beta"),
        ({"theta_gamma": -2.0}, "theta_gamma"),
        ({"filtering": "fast"}, "filtering"),
        ({"normalization": "l2"}, "normalization"),
    ],
)
def test_refuses_in_one_line(wrong: dict[str, Any], said: str) -> None:
    given = {"probabilities": np.full((2, 4, 5), 0.5), "image": np.zeros((4, 5, 3), np.uint8)} | wrong
    with pytest.raises(ValueError, match=f"^dense_crf: .*{said}"):
        dense_crf.dense_crf(given.pop("probabilities"), given.pop("image"), **given)


def test_auto_is_exact_where_that_is_affordable(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [dense_crf.chosen("auto", pixels, cpu) for pixels in (2**13, 2**13 + 1)] == ["exact", "permutohedral"]
    assert [dense_crf.chosen("auto", pixels, gpu) for pixels in (2**18, 2**18 + 1)] == ["exact", "permutohedral"]
    assert dense_crf.chosen("exact", 2**30, cpu) == "exact"
    probabilities, image = example(3, 8, 10)
    monkeypatch.setattr(dense_crf, "EXACT_PIXELS", {"cpu": 79, "cuda": 79})
    by = {filtering: dense_crf.dense_crf(probabilities, image, filtering=filtering) for filtering in ("auto", "exact", "permutohedral")}
    np.testing.assert_array_equal(by["auto"], by["permutohedral"])
    assert np.abs(by["exact"] - by["auto"]).max() > 1e-6


def test_presets_are_sets_of_options_and_the_settings_are_the_functions() -> None:
    parameters = inspect.signature(dense_crf.dense_crf).parameters.values()
    defaults = {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}
    assert asdict(schema.DenseCRF()) == {"preset": None} | defaults
    assert {entry.name for entry in fields(schema.DenseCRF)} == {"preset", *defaults}
    assert PRESETS["deeplab_v2_r101"] == R101 == {name: defaults[name] for name in R101}
    assert {"pydensecrf", "deeplab_v1", "deeplab_v2_vgg16", "crf_rnn", "conv_crf"} < set(PRESETS)
    for options in PRESETS.values():
        assert set(R101) <= set(options) <= set(defaults)


# In params.yaml and in an evaluation.


def read(folder: Path, settings: Any, common: Any = None) -> schema.DenseCRF | None:
    project = Project(folder)
    project.params["evaluate"]["dense_crf"] = common
    project.params["evaluations"]["crf"] = {"of": "fcn", "dense_crf": settings}
    if settings == "common":
        del project.params["evaluations"]["crf"]["dense_crf"]
    project.write()
    return config.load().evaluations["crf"].dense_crf


def test_params_name_a_preset_options_or_nothing(workspace: Path) -> None:
    assert read(workspace, None) is None
    assert read(workspace, {}) == schema.DenseCRF()
    assert read(workspace, {"iterations": 3, "filtering": "exact"}) == schema.DenseCRF(iterations=3, filtering="exact")
    settings = read(workspace, {"preset": "pydensecrf", "theta_beta": 5})
    assert settings == schema.DenseCRF(
        preset="pydensecrf", iterations=5, smoothness=3.0, theta_gamma=3.0, appearance=10.0, theta_alpha=80.0, theta_beta=5.0
    )
    common = {"preset": "crf_rnn"}
    assert read(workspace, "common", common) == schema.DenseCRF(**PRESETS["crf_rnn"], preset="crf_rnn")
    assert read(workspace, {}, common) == schema.DenseCRF()  # an evaluation's own takes the place of the common one
    assert read(workspace, None, common) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"theta": 3}, r"evaluations.crf.dense_crf.theta is unknown; .*theta_alpha"),
        ({"preset": "deeplab"}, r"evaluations.crf.dense_crf.preset: 'deeplab' is no preset.*deeplab_v1"),
        ({"preset": "pydensecrf", "teta_beta": 3}, "did you mean theta_beta"),
        ({"theta_beta": 0}, r"evaluations.crf.dense_crf.theta_beta: "),
        ({"filtering": "fast"}, r"evaluations.crf.dense_crf.filtering: .*'auto', 'exact' or 'permutohedral'"),
        (True, r"evaluations.crf.dense_crf must be a mapping"),
        ({"iterations": 1.5}, "iterations"),
    ],
)
def test_params_mistakes_are_one_line(workspace: Path, settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(workspace, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "how",
    [
        {"scales": (0.5, 1.0), "flip": True},
        {"scales": (1.5,), "flip": False, "short_side": 30},
        {"scales": (1.0,), "flip": False},
        {"mode": "slide", "window": (24, 32), "stride": (16, 20), "scales": (0.75, 1.0), "flip": True},
    ],
)
def test_both_protocols_are_refined_at_the_images_own_size(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, (image, _) = Toy(6, 4, False), picture(40, 46)
    settings = schema.DenseCRF(iterations=3, theta_beta=20.0, smoothness=0.5, appearance=1.0)
    evaluation = toy_evaluation(**how, dense_crf=settings)
    made = predict(Network(model, PADDING), image, None, evaluation, 6)
    plain = predict(Network(model, PADDING), image, None, toy_evaluation(**how), 6)
    for found, before, scales, flip in (
        (made.single_HW, plain.single_HW, (1.0,), False),
        (made.multi_HW, plain.multi_HW, evaluation.scales, evaluation.flip),
    ):
        probabilities = plain_probabilities(model, image, None, evaluation, scales, flip)
        expected = dense_crf.dense_crf(probabilities, np.array(image), iterations=3, theta_beta=20.0, smoothness=0.5, appearance=1.0)
        assert (torch.tensor(found) == expected.argmax(0)).all()
        assert 0.02 < (found != before).mean() < 0.9
        assert found.dtype == np.uint8
    assert (made.multi_HW is made.single_HW) == (plain.multi_HW is plain.single_HW)


def test_its_operations_are_those_of_its_kernels() -> None:
    image = Image.new("RGB", (12, 10), (90, 40, 200))
    one, two = (cost.crf_flops(image, 4, schema.DenseCRF(iterations=count, filtering="exact"), torch.device("cpu")) for count in (1, 2))
    pixels = 120
    at_least = 2 * 4 * pixels * pixels  # the bilateral kernel's
    assert at_least < two - one < 5 * at_least
    lattice = cost.crf_flops(image, 4, schema.DenseCRF(iterations=1, filtering="permutohedral"), torch.device("cpu"))
    assert 4 * 4 * 6 * pixels < lattice < one


def scatter(file: Path) -> None:
    """Give published weights a classifier that sees all classes."""
    torch.manual_seed(1)
    content = torch.load(file, weights_only=True)
    content["weights"]["crf.classifier.weight"].normal_(std=3)
    with file.open("wb") as written:
        torch.save(content, written)


@pytest.mark.slow
def test_an_evaluation_is_the_same_on_one_and_two_processes(project: Project) -> None:
    crf = {"of": "fcn", "dense_crf": {"preset": "pydensecrf", "iterations": 2}}
    slide = {"of": "fcn", "dense_crf": {}, "mode": "slide", "window": [32, 40], "stride": [24, 32], "scales": [1.0]}
    project.params["evaluations"] = {"fcn": {"of": "fcn"}, "crf": crf, "slide": slide, "ecrf": {"of": "ecrf"}}
    assert project.stage("train", "fcn") == 0
    scatter(Path("runs/fcn/weights/seed-0.pt"))
    made: dict[tuple[str, int], dict[str, Any]] = {}
    for name, processes in (("fcn", 1), ("crf", 1), ("crf", 2), ("slide", 1), ("slide", 2)):
        project.profile["processes"] = processes
        assert project.stage("evaluate", name) == 0
        made[name, processes] = json.loads(Path(f"results/{name}.json").read_text())
    plain = made["fcn", 1]
    assert "dense_crf" not in plain
    for name, settings in (("crf", PRESETS["pydensecrf"] | {"preset": "pydensecrf", "iterations": 2}), ("slide", {})):
        alone, both = made[name, 1], made[name, 2]
        for key in ("single_scale", "multi_scale_flip", "per_seed", "dense_crf"):
            assert alone[key] == both[key]
        assert alone["dense_crf"] == asdict(schema.DenseCRF()) | settings | {"filtered": ["exact"]}
        assert alone["cost"]["flops"] == both["cost"]["flops"]
        assert alone["cost"]["parameters"] == plain["cost"]["parameters"]
    assert made["crf", 1]["cost"]["flops"] > plain["cost"]["flops"]
    for protocol in ("single_scale", "multi_scale_flip"):
        assert made["crf", 1][protocol] != plain[protocol]


@pytest.mark.gpu
@pytest.mark.parametrize("filtering", ["exact", "permutohedral"])
def test_a_gpu_gives_the_same(filtering: str) -> None:
    probabilities, image = example(5, 40, 60)
    here = dense_crf.dense_crf(torch.from_numpy(probabilities), torch.from_numpy(image), filtering=filtering)
    there = dense_crf.dense_crf(torch.from_numpy(probabilities).cuda(), torch.from_numpy(image), filtering=filtering)
    assert there.is_cuda
    torch.testing.assert_close(here, there.cpu(), rtol=1e-7, atol=1e-7)
