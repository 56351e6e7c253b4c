"""Networks are built from names, work at any size, and say what is wrong."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from makers.networks import DEEPLAB, METHODS, UNARY, settings

from models.backbones import backbone
from models.crf import CRFS
from models.heads import HEADS
from models.losses import LOSSES
from models.segmenter import build, build_loss, options


def part(name: str, **given: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, options=given)


def timm_model(name: str, output_stride: int = 16, pretrained: bool | Path = False) -> SimpleNamespace:
    return SimpleNamespace(name=name, output_stride=output_stride, pretrained=pretrained)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_gives_logits_and_trains_all_its_parameters(method: str) -> None:
    torch.manual_seed(0)
    network = build(settings(**METHODS[method]), 5)
    image, superpixels = torch.rand(2, 3, 49, 70), torch.randint(0, 9, (2, 49, 70), dtype=torch.int32)
    output = network(image, superpixels)
    stride = network.head.stride
    assert output.logits_BKhw.shape == (2, 5, -(-49 // stride), -(-70 // stride))
    assert output.features_BChw.shape == (2, 8, *output.logits_BKhw.shape[2:])
    assert output.extras["auxiliary"].shape[:2] == (2, 5)
    terms = build_loss(settings(**METHODS[method]), 5)(output, torch.randint(0, 5, (2, 49, 70)))
    sum(terms.values()).backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    network.eval()
    with torch.no_grad():
        assert network(image, superpixels).extras.keys() <= {*network.crf.extras}


@pytest.mark.parametrize("method", list(METHODS))
def test_networks_build_on_the_meta_device(method: str, tmp_path: Path) -> None:
    for pretrained in (True, tmp_path / "absent.pth"):
        config = settings(**METHODS[method], backbone=timm_model("resnet50c.gluon_in1k", 8, pretrained))
        with torch.device("meta"):
            network = build(config, 7)
        assert all(parameter.is_meta for parameter in network.parameters())
    assert network.head.stride == (4 if config.head.name in ("decoupled", "deeplab", "ksac", "segformer", "uper") else 8)


def test_the_backbone_sees_normalised_images_and_the_crf_plain_ones() -> None:
    network = build(settings(**METHODS["ecrf"]), 3).eval()
    seen = {}
    for name in ("backbone", "crf"):
        getattr(network, name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs}))
    image, superpixels = torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int32)
    network(image, superpixels)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in backbone.normalization("resnet10t"))
    torch.testing.assert_close(seen["backbone"][0] * deviation + mean, image)
    assert seen["crf"][1] is image
    assert seen["crf"][2] is superpixels
    with pytest.raises(ValueError, match="needs superpixels"):
        network(image)


def test_settings_name_parts_of_the_network() -> None:
    names = {name for name, _ in build(settings(**METHODS["ecrf"]), 3).named_modules()}
    assert {"backbone", "head", "projection", "auxiliary", "crf", "crf.classifier", "crf.dropout", "crf.messages.position_conv"} <= names


def test_deeplab_has_the_published_number_of_parameters() -> None:
    # mmsegmentation's DeepLabV3+ on ResNet-101 D8 with auxiliary branch: 62.7 million (SegFormer, table 2), 150 classes.
    config = settings(
        backbone=timm_model("resnet101c.gluon_in1k", 8), head=part("deeplab"), crf=part("unary"),
        auxiliary=SimpleNamespace(stage=-2, width=256, kernel=3, weight=0.4),
    )  # fmt: skip
    with torch.device("meta"):
        network = build(config, 150)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(62.7e6, abs=0.1e6)


def test_deeplab_variants_differ_as_their_options_say() -> None:
    channels, strides = backbone.describe("resnet10t", 8)

    def of(**given: Any) -> Any:
        return HEADS["deeplab"](channels, strides, 4, width=16, rates=[2, 4], **given)

    plus, plain = of(), of(separable=False, decoder=False)
    assert (plus.stride, plus.channels, plus.end, plus.smallest_batch) == (4, 16, (16, 16, 3, True), 2)
    assert (plain.stride, plain.channels, plain.end) == (8, 64, (64, 16, 3, False))
    bare = of(decoder=False, pooling=False)
    assert (bare.channels, bare.smallest_batch) == (48, 1)
    stages = [torch.randn(1, c, -(-48 // s), -(-64 // s)) for c, s in zip(channels, strides, strict=True)]
    assert bare(stages)[0].shape == (1, 48, 6, 8)
    kernels = {tuple(m.kernel_size): m.groups for m in plus.aspp.atrous.modules() if isinstance(m, torch.nn.Conv2d)}
    assert kernels == {(3, 3): channels[-1], (1, 1): 1}
    dilations = [m.dilation for m in plain.aspp.atrous.modules() if isinstance(m, torch.nn.Conv2d)]
    assert dilations == [(2, 2), (4, 4)]


def test_image_pooling_is_the_mean_over_the_image() -> None:
    head = HEADS["deeplab"]((8,), (16,), 4, width=4, rates=[1], decoder=False).eval()
    x = torch.randn(2, 8, 5, 6)
    (features, _), pooled = head([x]), head.aspp.pool[1](x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(features[:, :4], pooled.expand(-1, -1, 5, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": part("deeplap")}, "head 'deeplap' is unknown; did you mean deeplab; known: "),
        ({"head": part("fcn", witdh=3)}, "head fcn has no option 'witdh'; did you mean width; known: convs, width"),
        ({"head": part("fcn", width="wide")}, "head fcn: "),
        ({"head": part("fcn", width=0)}, "must be at least 1"),
        ({"head": part("deeplab", rates=[0])}, "must be at least 1"),
        ({"head": part("psp", bins=[])}, "^head psp: width and bins must be at least 1"),
        ({"head": part("uper", width=0)}, "^head uper: width and bins must be at least 1"),
        ({"crf": part("embeded")}, "crf 'embeded' is unknown; did you mean embedded"),
        ({"crf": part("unary", dropout=2.0)}, "^crf unary: dropout"),
        ({"crf": part("embedded", dilation=0)}, "^crf embedded: kernel_size must be odd"),
        ({"projection": "none"}, "projection must be end or linear"),
        ({"auxiliary": SimpleNamespace(stage=-6, width=8, kernel=3, weight=0.4)}, "auxiliary.stage -6 does not exist"),
        ({"backbone": timm_model("resnet19")}, "'resnet19' is not in timm; did you mean resnet18"),
        ({"backbone": timm_model("resnet18.none")}, "known: resnet18.a1_in1k"),
        ({"backbone": timm_model("vgg16")}, "'vgg16' cannot give features at output_stride 16"),
        ({"backbone": timm_model("hrnet_w48", 8)}, "cannot give features at output_stride 8"),
        ({"backbone": timm_model("swin_tiny_patch4_window7_224")}, "one size only"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build(settings(**{"head": DEEPLAB, "crf": UNARY, **changes}), 3)


@pytest.mark.parametrize(
    ("name", "sides"),
    [("resnet10t", (1, 1)), ("convnext_atto", (1, 32)), ("vgg11", (1, 32)), ("hrnet_w18_small", (32, 32)), ("dla34", (32, 32))],
)
def test_backbones_take_images_of_any_size(name: str, sides: tuple[int, int]) -> None:
    """Where timm's fail (HRNet's branches of odd sizes do not fit), the image is padded, and the stages are cut again."""
    network = backbone.build(name, 32).eval()
    assert network.sides == sides
    _, strides = backbone.shape(network)
    for size in ((1, 1), (15, 3), (33, 65), (64, 96)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            found = backbone.stages(network, image)
            assert all(stage.isfinite().all() and stage.shape[2] >= 1 for stage in found)
            if sides[0] == 32:
                assert [stage.shape[2:] for stage in found] == [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
            if size == (64, 96) or sides == (1, 1):
                assert all(map(torch.equal, found, network(image)))
    with torch.no_grad():
        whole = torch.zeros(1, 3, 64, 96)
        whole[:, :, :33, :65] = image = torch.rand(1, 3, 33, 65)
        if sides[0] == 32:
            for ours, padded in zip(backbone.stages(network, image), network(whole), strict=True):
                torch.testing.assert_close(ours, padded[..., : ours.shape[2], : ours.shape[3]])


@pytest.mark.parametrize("head", ["segformer", "uper", "fcn"])
def test_networks_of_uneven_backbones_segment_any_image(head: str) -> None:
    network = build(settings(head=part(head, width=8), backbone=timm_model("hrnet_w18_small", 32)), 3).eval()
    for size in ((5, 9), (65, 70)):
        with torch.no_grad():
            assert network(torch.rand(1, 3, *size)).logits_BKhw.isfinite().all()


def test_losses_are_refused_likewise() -> None:
    with pytest.raises(ValueError, match="loss cross_entropy has no option 'weight'; did you mean unary_weight"):
        build_loss(settings(loss=part("cross_entropy", weight=1.0)), 3)
    with pytest.raises(ValueError, match="loss 'ohem' is unknown"):
        build_loss(settings(loss=part("ohem")), 3)


def test_every_option_has_a_type_and_a_default() -> None:
    for table in (HEADS, CRFS, LOSSES):
        for constructor in table.values():
            for parameter in options(constructor).values():
                assert parameter.default is not parameter.empty
                assert parameter.annotation is not parameter.empty


def test_weights_come_from_a_file_or_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm
    from safetensors.torch import save_file

    full = timm.create_model("resnet10t")
    state = {key: value.contiguous() for key, value in full.state_dict().items()}
    save_file(state, tmp_path / "resnet10t.safetensors")
    renamed = {f"module.{key}": value for key, value in state.items() if not key.startswith("layer4")}
    torch.save({"state_dict": {**renamed, "module.conv1.0.weight": torch.zeros(1)}}, tmp_path / "other.pth")

    network = backbone.build("resnet10t", 16, tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    line = capsys.readouterr().out
    assert "tensors loaded from" in line
    assert "unused: fc." in line
    assert "without" not in line

    (tmp_path / "hub/resnet10t.c3_in1k").mkdir(parents=True)
    (tmp_path / "resnet10t.safetensors").rename(tmp_path / "hub/resnet10t.c3_in1k/model.safetensors")  # as the hub's clone is
    backbone.build("resnet10t.c3_in1k", 16, tmp_path / "hub")
    assert "hub/resnet10t.c3_in1k/model.safetensors" in capsys.readouterr().out

    network = backbone.build("resnet10t", 16, tmp_path / "other.pth")
    assert torch.equal(network.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    line = capsys.readouterr().out
    assert "without weights: conv1.0.weight, layer4.0" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(("name", "classifier"), [("resnet10t", "fc"), ("convnext_atto", "head.fc")])
def test_what_timm_loads_by_name_is_printed(
    name: str, classifier: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    import timm.models._builder as builder

    state = timm.create_model(name).state_dict()
    monkeypatch.setattr(backbone, "_notice_missing_network", lambda: None)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    network = backbone.build(name, 32, True)
    total = len(network.state_dict())
    line = capsys.readouterr().out
    assert f"backbone {name}: {total} of {total} tensors loaded from Hugging Face hub" in line
    assert f"; unused: {classifier}\n" in line
    assert "without" not in line

    lost = next(key for key in network.state_dict() if key.endswith("0.conv1.weight") or key.endswith("mlp.fc1.weight"))
    given = {key: value for key, value in state.items() if key.replace(".", "_") != lost.replace(".", "_")}
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: given | {"strange.weight": torch.zeros(1)})
    backbone.build(name, 32, True)
    line = capsys.readouterr().out
    assert f"{total - 1} of {total} tensors" in line
    assert f"; without weights: {lost}; unused: strange.weight, {classifier}\n" in line


def test_flattened_backbones_find_their_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    full = timm.create_model("convnext_atto")
    torch.save(full.state_dict(), tmp_path / "convnext_atto.pth")
    network = backbone.build("convnext_atto", 32, tmp_path / "convnext_atto.pth").eval()
    assert "without" not in capsys.readouterr().out
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network(image)[-1], full.eval().forward_intermediates(image, intermediates_only=True)[-1])


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"conv9.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    torch.save({"made": "of text"}, tmp_path / "text.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"\x01" * 100)
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 truncated")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "other.pth": "has no weights of resnet10t", "text.pth": "holds no weights", "broken.safetensors": "cannot be read",
        "broken.pth": "cannot be read", "empty": "has no resnet10t.safetensors", "absent.pth": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            backbone.build("resnet10t", 16, tmp_path / name)


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.models._builder as builder

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(builder, "load_pretrained", offline)
    with pytest.raises(ValueError, match=r"no route to host\). Without network, set backbone.pretrained to the path") as caught:
        backbone.build("resnet18", 16, True)
    assert "https://huggingface.co/timm/resnet18.a1_in1k" in str(caught.value)


def test_logits_are_interpolated_as_the_head_says() -> None:
    network = build(settings(**METHODS["fcn"]), 3).eval()
    network.head.align_corners = True
    output = network(torch.rand(1, 3, 32, 32))
    labels = torch.randint(0, 3, (1, 32, 32))
    large = F.interpolate(output.logits_BKhw, (32, 32), mode="bilinear", align_corners=True)
    term = build_loss(settings(), 3)(output, labels)["cross_entropy"]
    torch.testing.assert_close(term, F.cross_entropy(large, labels))
