"""The card of an exported run, README.md: what it is, what it was trained on, what goes in and out, how it is loaded."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.backbone import normalization
from pipeline import graph, released
from pipeline.checkpoint import Weights
from pipeline.graph import Check
from pipeline.report.tables import code, escaped, markdown, percent
from pipeline.schema import Config, Part, SuperpixelSet

NAME = "README.md"
RESULTS = Path("results")
VERSIONS = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "safetensors")
SOURCES = {
    "ade20k": "ADE20K (Zhou et al., CVPR 2017)", "bdd100k": "BDD100K (Yu et al., CVPR 2020)", "camvid": "CamVid (Brostow et al., 2009)",
    "cityscapes": "Cityscapes (Cordts et al., CVPR 2016)", "cocostuff10k": "COCO-Stuff (Caesar et al., CVPR 2018)",
    "cocostuff164k": "COCO-Stuff (Caesar et al., CVPR 2018)", "folder": "a folder of its owner's images",
    "kitti": "KITTI (Alhaija et al., IJCV 2018)", "pascal_context": "PASCAL-Context (Mottaghi et al., CVPR 2014)",
    "scenes": "street scenes that the project's code generates", "voc2012": "PASCAL VOC 2012 (Everingham et al.)",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """One exported file: its name, what to know of it, and its check where it has one."""

    name: str
    note: str
    check: Check | None


def words(check: Check) -> str:
    """A check in one line."""
    sizes = ", ".join(f"{height} x {width}" for height, width in check.sizes)
    return (
        f"largest difference of logits {check.difference:.2g} (the largest logit is {check.largest:.3g}), equal labels at "
        f"{percent(check.equal)} % of pixels, over {check.inputs} inputs of {sizes}"
    )


def scores(weights: Weights) -> list[dict[str, Any]]:
    """The results here of this run's dataset and seed."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        try:
            values = json.loads(path.read_bytes())
            if (values["run"], values["dataset"]) == (weights.config.name, weights.config.data.dataset):
                own = next(entry for entry in values["per_seed"] if entry["seed"] == weights.config.seed)
                found.append({**own, "evaluation": values["evaluation"], "split": values["split"], "images": values["images"]})
        except (OSError, ValueError, KeyError, TypeError, StopIteration):  # no result, or of other seeds
            continue
    return found


def text(weights: Weights, palette: Sequence[Sequence[int]], written: Sequence[File], results: Sequence[Mapping[str, Any]]) -> str:
    """The whole card, in Markdown."""
    config = weights.config
    return "\n".join(
        [
            f"# {config.name}: semantic segmentation of {config.data.dataset}\n",
            facts(weights),
            f"## Classes\n\n{classes(weights.classes, palette)}",
            f"## Scores\n\n{table_of(results)}",
            f"## What goes in and out\n\n{contract(config)}",
            f"## Files\n\n{files_of(written)}",
            f"## Loading\n\n{loading(written, config.superpixel_set is not None)}",
            f"## Licence and source\n\n{source(config)}",
        ]
    )


def facts(weights: Weights) -> str:
    """What was trained, and with what."""
    config, train = weights.config, weights.config.train
    pretrained = {True: "timm's weights", False: "from scratch"}.get(config.backbone.pretrained, f"weights of {config.backbone.pretrained}")  # pyrefly: ignore
    rows = {
        "head, crf, loss": ", ".join(part(entry) for entry in (config.head, config.crf, config.loss)),
        "backbone": f"{code(config.backbone.name)}, stride {config.backbone.output_stride}, {escaped(str(pretrained))}",
        "training": f"{train.iterations} steps of {train.batch_size} images, crops of {' x '.join(map(str, config.data.crop))}, "
        f"seed {config.seed}",
        "data": f"{escaped(SOURCES.get(config.data.dataset, config.data.dataset))}, {len(weights.classes)} classes",
        "superpixels": superpixel_words(config.superpixel_set),
        "numbers": f"{sum(tensor.numel() for tensor in weights.state.values()):,}",
        "fingerprint": code(weights.fingerprint),
        "exported with": ", ".join(f"{name} {version}" for name in VERSIONS if (version := version_of(name))),
    }
    return markdown(("", ""), [(name, value) for name, value in rows.items()], words=2)


def part(entry: Part) -> str:
    """A part with its options."""
    options = ", ".join(f"{key}: {value}" for key, value in entry.options.items())
    return f"{code(entry.name)}{f' ({escaped(options)})' if options else ''}"


def version_of(name: str) -> str | None:
    """An installed package's version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def superpixel_words(settings: SuperpixelSet | None) -> str:
    """How the superpixels are made."""
    if settings is None:
        return "none"
    zero = ", slic_zero=True" if settings.algorithm == "slico" else ""
    call = (
        f"skimage.segmentation.slic(image, n_segments={settings.segments}, compactness={settings.compactness:g}, "
        f"sigma={settings.sigma:g}, start_label=0{zero})"
    )
    return f"{code(call)} of the 8-bit RGB image"


def classes(names: Sequence[str], palette: Sequence[Sequence[int]]) -> str:
    """Id, name and colour of each class."""
    rows = [(str(index), escaped(name), "#{:02x}{:02x}{:02x}".format(*palette[index])) for index, name in enumerate(names)]
    return markdown(("id", "class", "colour"), rows, words=3)


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Its evaluations, in percent."""
    if not results:
        return "None: it was not evaluated where it was exported.\n"
    rows = [
        (
            code(entry["evaluation"]), escaped(f"{entry['images']} images of {entry['split']}"), percent(entry["single_scale"]["miou"]),
            percent(entry["multi_scale_flip"]["miou"]), percent(entry["single_scale"]["pixel_accuracy"]),
        )
        for entry in results
    ]  # fmt: skip
    header = ("evaluation", "on", "mIoU", "mIoU, multi-scale + flip", "pixel accuracy")
    return "Of this seed, in percent, as the results beside the run say:\n\n" + markdown(header, rows, words=2)


def contract(config: Config) -> str:
    """The inputs and the output of model.onnx and model.pt2."""
    mean, deviation = ([round(value, 4) for value in values] for values in normalization(config.backbone.name))
    lines = [
        "- `image`: float32 [batch, 3, height, width], RGB in [0, 1], upright. The backbone's normalisation "
        f"(mean {mean}, deviation {deviation}) is inside: do not apply it.",
        "- `logits`, the output: float32 [batch, classes, height, width], at the image's size; the label is the largest of them.",
    ]
    if config.superpixel_set is not None:
        lines.insert(
            1,
            "- `superpixels`: int64 [batch, height, width], any integers that tell the superpixels of an image apart, negative for none, "
            f"made by {superpixel_words(config.superpixel_set)}.",
        )
    if config.crf.name == "mean_field":
        lines.append("- Its memory grows with the square of the pixels at the logits' stride (4 bytes for each two): cut large images.")
    lines.append("- The weights by themselves (safetensors) are for this project's code, which takes images of any size, by windows.")
    return "\n".join(lines) + "\n"


def files_of(written: Sequence[File]) -> str:
    """The files, and what their checks found."""
    rows = [(code(file.name), escaped(file.note), "" if file.check is None else escaped(words(file.check))) for file in written]
    return markdown(("file", "", "against the network itself"), rows, words=3)


def loading(written: Sequence[File], superpixels: bool) -> str:
    """How each file is loaded."""
    more = ', "superpixels": superpixels' if superpixels else ""
    call = "image, superpixels" if superpixels else "image"
    ways = {
        released.WEIGHTS: (
            "With this project's code on the path:",
            'from pipeline.predictor import Predictor\n\npredictor = Predictor.load("DIR")  # this folder\n'
            'ids_HW = predictor("street.jpg")  # of predictor.classes',
        ),
        graph.ONNX: (
            "With onnxruntime:",
            f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{graph.ONNX}")\n'
            f'logits = session.run(["logits"], {{"image": image{more}}})[0]',
        ),
        graph.TORCH: ("With torch:", f'import torch\n\nlogits = torch.export.load("{graph.TORCH}").module()({call})'),
    }
    return "\n".join(f"{title}\n\n```python\n{lines}\n```\n" for name, (title, lines) in ways.items() if name in {f.name for f in written})


def source(config: Config) -> str:
    """Whose it is."""
    return (
        f"The code that made it is licensed under Apache-2.0. The weights come from {escaped(SOURCES.get(config.data.dataset, 'its data'))}"
        f"{'' if config.backbone.pretrained is False else ' and from weights that were trained elsewhere'}: "
        "their owners' terms apply to what is made of them.\n"
    )
