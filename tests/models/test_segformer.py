"""SegFormer's and UPerNet's heads and the MiT encoders against transformers', literal forwards, and published numbers."""

import builtins
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from makers.networks import settings
from makers.project import Project
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from models.backbones import backbone, mit
from models.heads.segformer import SegFormer
from models.heads.uper import UPer
from models.parts.layers import PyramidPooling, region_means, region_means_by_products
from models.segmenter import build
from pipeline.runs import fingerprint

MIT = SimpleNamespace(name="mit_b0", output_stride=32, pretrained=False)
WIDTHS = (32, 64, 160, 256)


def part(name: str, **given: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, options=given)


@pytest.fixture(scope="module")
def theirs() -> SegformerForSemanticSegmentation:
    """A tiny-headed SegFormer-B0 of transformers, with batch statistics that do something."""
    torch.manual_seed(0)
    network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=7, decoder_hidden_size=24)).eval()
    norm = network.decode_head.batch_norm
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    return network


def released(key: str) -> str:
    """transformers' key as the authors wrote it, keys and values apart."""
    stage, rest = re.fullmatch(r"stages\.(\d)\.(.*)", key).groups()
    rest = re.sub(r"^patch_embeddings\.layer_norm", f"patch_embed{int(stage) + 1}.norm", rest)
    rest = re.sub(r"^patch_embeddings", f"patch_embed{int(stage) + 1}", rest)
    rest = re.sub(r"^blocks", f"block{int(stage) + 1}", rest)
    rest = re.sub(r"^layer_norm", f"norm{int(stage) + 1}", rest)
    for ours, authors in {
        "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.sequence_reduction.sequence_reduction": "attn.sr",
        "attention.sequence_reduction.layer_norm": "attn.norm", "attention.o_proj": "attn.proj", "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.k", "attention.v_proj": "attn.v",
    }.items():  # fmt: skip
        rest = rest.replace(ours, authors)
    return rest


def hub(key: str) -> str:
    """transformers' key as in the files on the hub."""
    stage, rest = re.fullmatch(r"stages\.(\d)\.(.*)", key).groups()
    rest = re.sub(r"^(patch_embeddings|layer_norm)\.", rf"\1.{stage}.", rest)
    rest = re.sub(r"^blocks\.", f"block.{stage}.", rest)
    for ours, old in {
        "layernorm_before": "layer_norm_1", "layernorm_after": "layer_norm_2", "attention.o_proj": "attention.output.dense",
        "attention.sequence_reduction.sequence_reduction": "attention.self.sr", "mlp.fc": "mlp.dense",
        "attention.sequence_reduction.layer_norm": "attention.self.layer_norm", "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key", "attention.v_proj": "attention.self.value",
    }.items():  # fmt: skip
        rest = rest.replace(ours, old)
    return f"segformer.encoder.{rest}"


def as_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' file: one linear layer for keys and values, and a classifier."""
    named = {released(key): value for key, value in state.items()}
    for key in [key for key in named if ".attn.k." in key]:
        named[key.replace(".attn.k.", ".attn.kv.")] = torch.cat([named.pop(key), named.pop(key.replace(".attn.k.", ".attn.v."))])
    return {**named, "head.weight": torch.zeros(10, 256), "head.bias": torch.zeros(10)}


LAYOUTS = {
    "transformers": lambda state: {f"segformer.{key}": value for key, value in state.items()},
    "hub": lambda state: {**{hub(key): value for key, value in state.items()}, "classifier.weight": torch.zeros(10, 256)},
    "release": as_released,
    "wrapped": lambda state: {"state_dict": {f"module.backbone.{key}": value for key, value in as_released(state).items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_every_layout_are_found(
    theirs: SegformerForSemanticSegmentation, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = theirs.segformer.state_dict()
    written = LAYOUTS[layout](state)
    sample = {"hub": "segformer.encoder.block.2.0.attention.self.key.weight", "release": "block3.1.attn.kv.bias"}
    assert sample.get(layout, next(iter(written))) in written
    torch.save(written, tmp_path / "mit_b0.pth")
    network = backbone.build("mit_b0", 32, tmp_path).eval()
    said = capsys.readouterr().out
    assert f"{len(state)} of {len(state)} tensors" in said
    assert "without" not in said
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_encoder_is_transformers(theirs: SegformerForSemanticSegmentation) -> None:
    network = backbone.build("mit_b0", 32).eval()
    network.load_state_dict(theirs.segformer.state_dict())
    image = torch.rand(2, 3, 65, 97)
    expected = theirs.segformer(image, output_hidden_states=True).hidden_states
    for ours, theirs_, stride in zip(network(image), expected, mit.STRIDES, strict=True):
        assert ours.shape[2:] == (-(-65 // stride), -(-97 // stride))
        torch.testing.assert_close(ours, theirs_)


def test_the_head_is_transformers(theirs: SegformerForSemanticSegmentation) -> None:
    network = build(settings(backbone=MIT, head=part("segformer", width=24), auxiliary=None), 7).eval()
    network.mean.zero_(), network.deviation.fill_(1)
    network.backbone.load_state_dict(theirs.segformer.state_dict())
    head = theirs.decode_head
    for ours, linear in zip(network.head.linear, head.linear_projections, strict=True):
        ours.weight.data, ours.bias.data = linear.proj.weight.data[..., None, None], linear.proj.bias.data
    network.projection.end[0].weight.data = head.linear_fuse.weight.data
    network.projection.end[1].load_state_dict(head.batch_norm.state_dict())
    network.crf.classifier.load_state_dict(head.classifier.state_dict())
    image = torch.rand(2, 3, 65, 97)
    torch.testing.assert_close(network(image).logits_BKhw, theirs(image).logits)
    network.train(), theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)  # the paths that are dropped
    ours = network(image).logits_BKhw
    torch.manual_seed(0)
    torch.testing.assert_close(ours, theirs(image).logits)
    theirs.eval()


def literal_uper(head: UPer, stages: list[Tensor], bins: tuple[int, ...]) -> Tensor:
    """The released forward, level by level; adaptive pooling written out."""
    top = stages[-1]
    pooled = [top]
    for side, conv in zip(bins, head.pooling.convs, strict=True):
        cells = top.new_zeros(*top.shape[:2], side, side)
        for row in range(side):
            for column in range(side):
                (y0, y1), (x0, x1) = (
                    (place * size // side, -(-((place + 1) * size) // side))
                    for place, size in ((row, top.shape[2]), (column, top.shape[3]))
                )
                cells[..., row, column] = top[..., y0:y1, x0:x1].mean((2, 3))
        pooled.append(F.interpolate(conv(cells), top.shape[2:], mode="bilinear", align_corners=False))
    laterals = [conv(stage) for conv, stage in zip(head.lateral, stages, strict=False)]
    laterals.append(head.bottleneck(torch.cat(pooled, 1)))
    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], laterals[i - 1].shape[2:], mode="bilinear")
    levels = [conv(level) for conv, level in zip(head.smooth, laterals, strict=False)] + [laterals[-1]]
    return torch.cat([F.interpolate(level, levels[0].shape[2:], mode="bilinear") for level in levels], 1)


@pytest.mark.parametrize(("size", "train"), [((64, 96), True), ((61, 83), True), ((33, 129), False)])
def test_uper_is_the_released_forward(size: tuple[int, int], train: bool) -> None:
    torch.manual_seed(0)
    channels, bins = (3, 4, 5, 6, 7), (1, 2, 3)
    head = UPer(channels, (2, 4, 8, 16, 32), 5, width=8, bins=bins).double().train(train)
    shapes = zip(channels, (2, 4, 8, 16, 32), strict=True)
    stages = [torch.randn(2, c, -(-size[0] // s), -(-size[1] // s), dtype=torch.float64).requires_grad_() for c, s in shapes]
    ours, expected = head(stages)[0], literal_uper(head, stages[1:], bins)
    torch.testing.assert_close(ours, expected)
    assert ours.shape == (2, 32, *stages[1].shape[2:])
    cotangent = torch.randn_like(ours)
    wanted = [*stages[1:], *head.parameters()]
    for a, b in zip(torch.autograd.grad(ours, wanted, cotangent), torch.autograd.grad(expected, wanted, cotangent), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("side", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(5, 7), (6, 12), (1, 2)])
def test_region_means_as_products_are_adaptive_pooling(side: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    ours, expected = region_means_by_products(x, side), F.adaptive_avg_pool2d(x, side)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(region_means(x, side), expected)


def test_pyramid_pooling_keeps_the_stage_first() -> None:
    pooling = PyramidPooling(3, 4, [1, 2]).eval()
    x = torch.randn(2, 3, 5, 6)
    y = pooling(x)
    assert y.shape == (2, pooling.channels, 5, 6)
    assert torch.equal(y[:, :3], x)
    torch.testing.assert_close(y[:, 3:7], pooling.convs[0](x.mean((2, 3), keepdim=True)).expand(-1, -1, 5, 6))


PUBLISHED = {
    # SegFormer, table 1: with 150 classes.
    "SegFormer-B0": (MIT.name, "segformer", 256, None, 3.8),
    "SegFormer-B1": ("mit_b1", "segformer", 256, None, 13.7),
    "SegFormer-B2": ("mit_b2", "segformer", 768, None, 27.5),
    "SegFormer-B3": ("mit_b3", "segformer", 768, None, 47.3),
    "SegFormer-B4": ("mit_b4", "segformer", 768, None, 64.1),
    "SegFormer-B5": ("mit_b5", "segformer", 768, None, 84.7),
    # mmsegmentation's UPerNet, with auxiliary branch.
    "UPerNet-R50": ("resnet50c.gluon_in1k", "uper", 512, SimpleNamespace(stage=-2, width=256, kernel=3, weight=0.4), 66.5),
}


@pytest.mark.parametrize("published", PUBLISHED)
def test_networks_have_the_published_number_of_parameters(published: str) -> None:
    name, head, width, auxiliary, millions = PUBLISHED[published]
    chosen = SimpleNamespace(name=name, output_stride=32, pretrained=True)
    with torch.device("meta"):
        network = build(settings(backbone=chosen, head=part(head, width=width), auxiliary=auxiliary), 150)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(millions * 1e6, abs=0.06e6)


@pytest.mark.parametrize("head", ["segformer", "uper"])
@pytest.mark.parametrize("size", [(33, 65), (17, 70), (1, 1)])
def test_any_size_is_segmented_and_batches_do_not_matter(head: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = build(settings(backbone=MIT, head=part(head, width=8)), 3).eval()
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        logits = network(image).logits_BKhw
        assert logits.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
        assert logits.isfinite().all()
        torch.testing.assert_close(network(image[1:]).logits_BKhw, logits[1:])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(network(image).logits_BKhw.float(), logits, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("name", ["test_resnet", "pvt_v2_b0", "convnext_atto", "mambaout_femto"])
@pytest.mark.parametrize("head", [SegFormer, UPer])
def test_any_pyramid_serves(name: str, head: Any) -> None:
    """At odd sizes some backbones round down and some up; some have their channels last."""
    network = backbone.build(name, 32).eval()
    channels, strides = backbone.shape(network)
    built = head(channels, strides, 3, width=8).eval()
    with torch.no_grad():
        stages = network(torch.rand(1, 3, 65, 99))
        features, extras = built(stages)
    assert built.stride == 4
    assert features.shape == (1, built.channels, *stages[strides.index(4)].shape[2:])
    assert extras == {}


def test_dilated_stages_of_one_stride_are_all_used() -> None:
    head = SegFormer((4, 5, 6, 7, 8), (2, 4, 8, 8, 8), 3, width=2)
    assert [linear.in_channels for linear in head.linear] == [5, 6, 7, 8]
    assert (head.stride, head.channels, head.end) == (4, 8, (8, 2, 1, False))


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (SegFormer, {"width": 0}, "head segformer: width must be at least 1"),
        (UPer, {"bins": [0, 1]}, "width and bins must be at least 1"),
        (UPer, {"bins": []}, "width and bins"),
    ],
)
def test_bad_options_are_refused(head: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head((4, 5), (4, 8), 3, **options)
    with pytest.raises(ValueError, match="needs a stage of stride 4 or more"):
        head((4, 5), (1, 2), 3)


def test_pooling_to_one_value_needs_two_images() -> None:
    assert UPer((4, 5), (4, 8), 3, width=2).smallest_batch == 2
    assert UPer((4, 5), (4, 8), 3, width=2, bins=[2]).smallest_batch == 1


def test_what_an_encoder_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backbone.normalization("mit_b3") == backbone.normalization("resnet50.tv_in1k")
    with pytest.raises(ValueError, match="'mit_b0' cannot give features at output_stride 16: it cannot be dilated; try 32"):
        backbone.build("mit_b0", 16)
    with pytest.raises(ValueError, match="did you mean mit_b5"):
        backbone.build("mit_b6", 32)
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="needs transformers, which is not installed: run `uv sync --extra segformer`"):
        backbone.build("mit_b0", 32)


def test_the_hubs_weights_are_loaded_or_missed_with_advice(
    theirs: SegformerForSemanticSegmentation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    state = theirs.segformer.state_dict()
    torch.save(LAYOUTS["hub"](state), tmp_path / "pytorch_model.bin")
    asked = []

    def offline(*arguments: str) -> str:
        asked.append(arguments)
        if len(asked) > 1:
            raise OSError("no route\nto host")
        return str(tmp_path / "pytorch_model.bin")

    monkeypatch.setattr(backbone, "_notice_missing_network", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    network = backbone.build("mit_b0", 32, True)
    assert torch.equal(network.stages[1].blocks[0].mlp.fc1.weight, state["stages.1.blocks.0.mlp.fc1.weight"])
    assert "unused: classifier.weight" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no route to host\). Without network, set backbone.pretrained to the path"):
        backbone.build("mit_b0", 32, True)
    assert asked == [("nvidia/mit-b0", "pytorch_model.bin")] * 2


def test_a_segformer_trains_resumes_and_depends_on_transformers(project: Project) -> None:
    project.params["methods"]["fcn"] |= {
        "head": {"name": "segformer", "width": 16}, "backbone": {"name": "mit_b0", "output_stride": 32, "pretrained": False},
        "auxiliary": None, "train": {"iterations": 4},
    }  # fmt: skip
    project.profile["save_every"] = 2
    assert "transformers" in fingerprint.settings(project.config("fcn"))["inputs"]["versions"]
    assert "transformers" not in fingerprint.settings(project.config("ecrf"))["inputs"]["versions"]
    assert project.stage("train", "fcn") == 0
    published = project.folder / "runs/fcn/weights/seed-0.pt"
    expected = published.read_bytes()
    for path in project.folder.glob("runs/fcn/finished/*/seed-0.*"):
        path.unlink()
    assert project.stage("train", "fcn") == 0  # dropped paths are drawn alike again
    assert published.read_bytes() == expected
    assert project.stage("evaluate", "fcn") == 0
