"""The plain forms of a network's parts, which graphs are made of: they compute what the parts compute, and what has none is refused."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from makers.networks import smooth
from makers.project import Project
from PIL import Image
from torch import nn

from models.portable import FORMS, Portable
from models.segmenter import build
from pipeline.ground.errors import UserError
from pipeline.release import export, graph
from pipeline.settings import config

HERE = Path(__file__).parents[2]


def methods() -> dict[str, Any]:
    """The default methods, and others whose parts have plain forms of their own."""
    return dict(config.load(HERE / "params.yaml").methods)


@pytest.mark.parametrize("name", list(methods()))
@torch.no_grad()
def test_plain_forms_compute_what_the_default_methods_compute(name: str) -> None:
    """With weights away from their start: batch norms, crfs and flows that do something."""
    torch.manual_seed(0)
    chosen = methods()[name]
    model = shaken(build(chosen, 5))
    plain = Portable(model)
    reference = graph.original(model)
    for size in ((64, 96), (50, 75), (33, 120)):
        image = smooth(2, *size)
        superpixels = (torch.arange(size[0])[:, None] // 7 * 20 + torch.arange(size[1]) // 9 - 5).expand(2, *size)
        inputs = (image, superpixels) if chosen.superpixel_set else (image,)
        wanted = torch.from_numpy(reference(inputs))
        assert wanted.std() > 0.01
        torch.testing.assert_close(plain(*inputs), wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)


def shaken(model: nn.Module) -> Any:
    """The network in eval mode, with random weights everywhere and none that is tiny."""
    for parameter in model.parameters():
        parameter += 0.1 * parameter.std(correction=0).clamp(min=0.05) * torch.randn_like(parameter)
    for name, values in model.named_buffers():
        if name.endswith("running_mean"):
            values += 0.1 * torch.randn_like(values)
    return model.eval()


OTHERS = {
    "pair": {"crf": {"name": "embedded", "compatibility": "pair", "normalization": "absolute", "centre": False}},
    "count": {"crf": {"name": "embedded", "normalization": "count", "superpixel_weight": 0}},
    "class": {"crf": {"name": "mean_field", "weights": "class", "normalization": "symmetric", "learn_bandwidths": True}},
    "conv": {
        "crf": {"name": "conv", "filter_size": 5, "blur": 1, "stride": 4, "start": "logits", "compatibility": True, "theta_alpha": 9.0}
    },
    "attention": {"head": {"name": "attention", "width": 16, "key_width": 8}},
    "full": {"head": {"name": "caa", "width": 16, "key_width": 8, "output_width": 16, "attention": "full"}},
    "psp": {"head": {"name": "psp", "width": 16}},
    "unshared": {"head": {"name": "ksac", "width": 16, "rates": [1, 3], "shared": False}},
}


@pytest.mark.parametrize("name", list(OTHERS))
@torch.no_grad()
def test_plain_forms_of_other_options(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(build(one_method(superpixels="slic", **OTHERS[name]), 5))
    image = smooth(2, 50, 75)
    superpixels = torch.randint(-1, 40, (2, 6, 9)).repeat_interleave(9, 1).repeat_interleave(9, 2)[:, :50, :75]
    wanted = torch.from_numpy(graph.original(model)((image, superpixels)))
    torch.testing.assert_close(Portable(model)(image, superpixels), wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)


def test_every_plain_form_is_tried() -> None:
    """The two tests above between them meet each entry of the table."""
    met: set[type] = set()
    for chosen in methods().values():
        with torch.device("meta"):
            met |= {type(module) for module in build(chosen, 5).modules()}
    for name in OTHERS:
        with torch.device("meta"):
            met |= {type(module) for module in build(one_method(superpixels="slic", **OTHERS[name]), 5).modules()}
    assert set(FORMS) <= met


def one_method(**changes: Any) -> Any:
    """The config of a small network with these parts."""
    project = Project(Path())
    entry = {"head": {"name": "fcn", "width": 16}, "crf": {"name": "unary"}, "loss": {"name": "cross_entropy"}, "superpixels": "none"}
    project.params["methods"] = {"one": {**entry, **changes}}
    project.params["evaluate"] |= {"mode": "slide", "window": [48, 64], "stride": [48, 64], "scales": [1.0]}
    project.params |= {"evaluations": {"one": {"of": "one"}}, "launch": "local"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        file.write_text(yaml.safe_dump(project.params))
        return config.load(file).methods["one"]


def test_what_cannot_be_exported_is_refused_with_the_reason() -> None:
    model = build(one_method(crf={"name": "mean_field", "filtering": "permutohedral"}), 5)
    with pytest.raises(UserError, match="it has no form for other programs: crf mean_field: filtering: permutohedral"):
        graph.trace(model, (torch.zeros(2, 3, 48, 64),))


def drawn(chosen: Any) -> Any:
    """A network away from its start."""
    torch.manual_seed(0)
    with torch.no_grad():
        return shaken(build(chosen, 5))


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray((255 * smooth(1, height, width)[0].permute(1, 2, 0)).to(torch.uint8).numpy())


@torch.no_grad()
def test_mit_in_plain_operations() -> None:
    """Odd sizes: every stage rounds its map up."""
    pytest.importorskip("transformers")
    chosen = one_method(head={"name": "segformer", "width": 16}, backbone={"name": "mit_b0", "output_stride": 32}, auxiliary=None)
    model, image = drawn(chosen), smooth(2, 97, 66)
    plain = Portable(model)
    plain.settle(image)
    wanted = torch.from_numpy(graph.original(model)((image,)))
    torch.testing.assert_close(plain(image), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)


def test_axial_attention_is_written_for_torch_and_takes_any_size(tmp_path: Path) -> None:
    """A part that switches autocast off can be traced, but not written."""
    chosen = one_method(head={"name": "caa", "width": 16, "key_width": 8, "output_width": 16})
    model = drawn(chosen)
    traced = export.traced_of(model, chosen, [picture(48, 64)], "one")
    assert traced.free
    graph.write_torch(traced, tmp_path / "model.pt2")
    trials = export.trial_inputs([picture(48, 64), picture(70, 41)], traced, chosen)
    assert [part.shape for (part,) in trials] == [(2, 3, 48, 64), (1, 3, 48, 64), (1, 3, 70, 41), (1, 3, 36, 49)]
    assert graph.check(graph.torch_runner(tmp_path / "model.pt2"), graph.original(model), trials).passed


def test_learned_positions_are_exported_at_their_size() -> None:
    """Such a ConvCRF takes one size alone, though a trace would not notice."""
    chosen = one_method(crf={"name": "conv", "filter_size": 3, "stride": 2, "position": [24, 32]})
    model, images = drawn(chosen), [picture(60, 100), picture(20, 30)]
    traced = export.traced_of(model, chosen, images, "one")
    assert (traced.free, traced.size) == (False, (48, 64))
    assert export.size_words(traced) == "any batch, height 48 and width 64 alone"
    trials = export.trial_inputs(images, traced, chosen)
    assert [part.shape for (part,) in trials] == [(2, 3, 48, 64), (1, 3, 48, 64), (1, 3, 48, 64)]
    program = traced.program.module()
    assert graph.check(lambda inputs: program(*inputs).detach().numpy(), graph.original(model), trials).passed
