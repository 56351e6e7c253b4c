"""The recipes against what the papers publish: settings, methods, and what their headers must say."""

from pathlib import Path

import pytest
import yaml

from pipeline.settings import config

ROOT = Path(__file__).parents[2]
PAPERS = ("ade20k", "bdd100k", "camvid", "cityscapes", "cocostuff10k", "cocostuff164k", "kitti", "pascal_context", "voc2012")
# crop, ratio_base, batch, iterations, lr, least lr, weight decay, superpixels, output stride
PUBLISHED = {
    "ade20k": ((512, 512), (2048, 512), 16, 80_000, 0.01, 1e-4, 5e-4, 200, 8),
    "cityscapes": ((832, 832), None, 8, 180 * 2975 // 8, 0.01, 1e-4, 5e-4, 600, 8),
    "pascal_context": ((480, 480), (520, 520), 16, 80_000, 0.004, 1e-4, 1e-4, 200, 8),
    "voc2012": ((513, 513), None, 16, 40_000, 0.01, 0.0, 1e-4, 200, 16),
    "cocostuff10k": ((513, 513), None, 16, 40_000, 0.01, 0.0, 2e-4, 200, 8),
    "cocostuff164k": ((512, 512), (2048, 512), 16, 80_000, 0.01, 1e-4, 5e-4, 200, 8),
    "bdd100k": ((720, 720), None, 8, 120 * 7000 // 8, 0.001, 0.0, 5e-4, 600, 8),
}
EVALUATED = {
    "ade20k": ("whole", None, None, 512),
    "cityscapes": ("whole", None, None, None),
    "pascal_context": ("slide", (480, 480), (320, 320), None),
    "cocostuff10k": ("whole", None, None, None),
    "cocostuff164k": ("whole", None, None, 512),
}


def header(name: str) -> str:
    text = (ROOT / f"recipes/{name}.yaml").read_text()
    return text[: text.index("\ndata:")]


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_has_every_method_and_says_where_it_comes_from(name: str) -> None:
    recipe = yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text())
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert recipe["methods"].keys() >= default["methods"].keys()
    assert {entry["of"] for entry in recipe["evaluations"].values()} == recipe["methods"].keys()
    assert recipe["evaluations"].keys() >= default["evaluations"].keys()
    assert recipe["data"]["dataset"] == name
    for word in ("Source", "Hardware", "Hours", "Published", "Chosen", f"cp recipes/{name}.yaml params.yaml"):
        assert f"\n# {word}" in header(name) or (word.startswith("cp") and word in header(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name: str) -> None:
    params = config.load(ROOT / f"recipes/{name}.yaml")
    crop, base, batch, iterations, lr, least, decay, segments, stride = PUBLISHED[name]
    assert (params.data.crop, params.data.ratio_base, params.data.scale) == (crop, base, (0.5, 2.0))
    for run in params.methods.values():
        train = run.train
        assert (train.optimizer, train.momentum, train.power, train.warmup) == ("sgd", 0.9, 0.9, 0)
        assert (train.batch_size, train.lr, train.min_lr, train.weight_decay) == (batch, lr, least, decay)
        assert train.iterations == pytest.approx(iterations, rel=0.001)
        assert (run.backbone.name, run.backbone.output_stride, run.backbone.pretrained) == ("resnet101c.gluon_in1k", stride, True)
    superpixels = params.superpixels["slic"]
    assert superpixels is not None
    assert superpixels.segments == segments


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluations_are_the_published_ones(name: str) -> None:
    for entry in config.load(ROOT / f"recipes/{name}.yaml").evaluations.values():
        assert (entry.mode, entry.window, entry.stride, entry.short_side) == EVALUATED[name]
        assert (entry.scales, entry.flip, entry.split) == ((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True, "val")


@pytest.mark.parametrize("name", PAPERS)
def test_methods_are_their_papers(name: str) -> None:
    methods = config.load(ROOT / f"recipes/{name}.yaml").methods
    ratio = 16 // methods["ksac"].backbone.output_stride  # rates are given for output stride 16
    assert methods["ksac"].head.options["rates"] == [ratio * rate for rate in (1, 6, 12, 18, 24)]
    assert list(methods["deeplab"].head.options.get("rates", (12, 24, 36))) == [ratio * rate for rate in (6, 12, 18)]
    auxiliary = {key: None if run.auxiliary is None else (run.auxiliary.stage, run.auxiliary.weight) for key, run in methods.items()}
    assert (auxiliary["deeplab"], auxiliary["ecrf"], auxiliary["caa"], auxiliary["car"]) == ((-2, 0.4), (-2, 0.4), (-1, 0.4), None)
    assert (methods["car"].projection, methods["car"].head.name, methods["car"].loss.name) == ("linear", "attention", "car")
    assert (methods["ecrf"].crf.name, methods["ecrf"].superpixels, methods["deeplab"].superpixels) == ("embedded", "slic", "none")
