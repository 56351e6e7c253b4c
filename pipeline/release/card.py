"""The card of an exported run, README.md: what it is and is for, what it was trained on, what goes in and out, how it is loaded."""

import importlib.metadata
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.backbones import mit
from models.backbones.backbone import normalization
from pipeline.evaluation import record
from pipeline.release import snippets
from pipeline.release.graph import Check
from pipeline.report.tables import code, escaped, markdown, percent
from pipeline.settings.schema import Backbone, Config, Part, SuperpixelSet
from pipeline.training.checkpoint import Weights

NAME = "README.md"
MARK = "| fingerprint |"  # of a card, as no other README.md has it
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


def is_card(path: Path) -> bool:
    """Whether a file is such a card."""
    return path.is_file() and MARK in path.read_text(errors="replace")


def words(check: Check) -> str:
    """A check in one line."""
    sizes = ", ".join(f"{height} x {width}" for height, width in check.sizes)
    return (
        f"largest difference of logits {check.difference:.2g} (the largest logit is {check.largest:.3g}), equal labels at "
        f"{percent(check.equal)} % of pixels, over {check.inputs} inputs of {sizes}"
    )


def scores(weights: Weights) -> list[dict[str, Any]]:
    """The results here of exactly these weights, those of the network alone first."""
    found = []
    for path in sorted(record.RESULTS.glob("*.json")):
        try:
            values = json.loads(path.read_bytes())
            if measured(path.with_suffix("") / record.NAME)[str(weights.config.seed)] == weights.fingerprint:
                own = next(entry for entry in values["per_seed"] if entry["seed"] == weights.config.seed)
                found.append({**own, **{key: values.get(key) for key in ("evaluation", "split", "images", "dense_crf")}})
        except (OSError, ValueError, KeyError, TypeError, StopIteration, EOFError, zipfile.BadZipFile, zlib.error):
            continue  # no result, or of other weights
    return sorted(found, key=lambda entry: entry["dense_crf"] is not None)


def measured(path: Path) -> Mapping[str, str]:
    """The fingerprints, by seed, of the weights that an evaluation's record counts."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:  # a damaged file would be left open
        return json.loads(str(stored["about"]))["weights"]


def text(weights: Weights, palette: Sequence[Sequence[int]], written: Sequence[File], results: Sequence[Mapping[str, Any]]) -> str:
    """The whole card, in Markdown."""
    config = weights.config
    return "\n".join(
        [
            f"# {config.name}: semantic segmentation of {config.data.dataset}\n",
            facts(weights),
            f"## Intended use\n\n{use(weights)}",
            f"## Classes\n\n{classes(weights.classes, palette, results)}",
            f"## Scores\n\n{table_of(results)}",
            f"## What goes in and out\n\n{contract(config)}",
            f"## Files\n\n{files_of(written)}",
            f"## Loading\n\n{snippets.loading({file.name for file in written}, config.superpixel_set)}",
            f"## Licence and source\n\n{source(config)}",
        ]
    )


def facts(weights: Weights) -> str:
    """What was trained, and with what."""
    config, train = weights.config, weights.config.train
    rows = {
        "head, crf, loss": ", ".join(part(entry) for entry in (config.head, config.crf, config.loss)),
        "backbone": f"{code(config.backbone.name)}, stride {config.backbone.output_stride}, {escaped(start(config.backbone))}",
        "training": f"{train.iterations} steps of {train.batch_size} images, crops of {' x '.join(map(str, config.data.crop))}, "
        f"seed {config.seed}",
        "data": f"{escaped(data_of(config))}, {len(weights.classes)} classes",
        "superpixels": superpixel_words(config.superpixel_set),
        "parameters and buffers": f"{sum(tensor.numel() for tensor in weights.state.values()):,}",
        "fingerprint": code(weights.fingerprint),
        "exported with": ", ".join(f"{name} {version}" for name in VERSIONS if (version := version_of(name))),
    }
    if config.finetune is not None:
        rows["training"] += f", from {code(config.finetune.source.as_posix())}"
    return markdown(("", ""), [(name, value) for name, value in rows.items()], words=2)


def start(backbone: Backbone) -> str:
    """What the backbone's training started from."""
    if backbone.pretrained is True:
        return f"weights of {mit.place(backbone.name)}" if backbone.name in mit.VARIANTS else "timm's weights"
    return "from scratch" if backbone.pretrained is False else f"weights of {backbone.pretrained.name}"


def data_of(config: Config) -> str:
    """The dataset in words."""
    return SOURCES.get(config.data.dataset, config.data.dataset)


def use(weights: Weights) -> str:
    """What it is for, and what it is not for."""
    return (
        f"Research on methods of semantic segmentation. It gives every pixel of an RGB image one of {len(weights.classes)} classes, also "
        f"where none of them is right. It was trained on {escaped(data_of(weights.config))}. The scores below are all that was measured: "
        "how it does on other images is not known. It is not made for decisions that concern people.\n"
    )


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
    return "none" if settings is None else f"{code(f'skimage.segmentation.{snippets.slic(settings)}')} of the 8-bit RGB image"


def classes(names: Sequence[str], palette: Sequence[Sequence[int]], results: Sequence[Mapping[str, Any]]) -> str:
    """Id, name and colour of each class, and its IoU in the first of the results, which is the network's by itself."""
    rows = [[str(index), escaped(name), "#{:02x}{:02x}{:02x}".format(*palette[index])] for index, name in enumerate(names)]
    header = ["id", "class", "colour"]
    if results and results[0]["dense_crf"] is None:
        header.append("IoU, single scale")
        for row, name in zip(rows, names, strict=True):
            row.append(percent(results[0]["single_scale"]["iou"].get(name)))
    return markdown(header, rows, words=3)


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Its evaluations, in percent."""
    if not results:
        return "None: these weights were not evaluated where they were exported.\n"
    rows = [
        (
            code(entry["evaluation"]) + ("" if entry["dense_crf"] is None else ", with a dense CRF after it, in none of the files"),
            escaped(f"{entry['images']} images of {entry['split']}"), percent(entry["single_scale"]["miou"]),
            percent(entry["multi_scale_flip"]["miou"]), percent(entry["single_scale"]["pixel_accuracy"]),
            percent(entry["single_scale"]["mean_accuracy"]),
        )
        for entry in results
    ]  # fmt: skip
    header = ("evaluation", "on", "mIoU", "mIoU, multi-scale + flip", "pixel accuracy", "mean accuracy")
    return "Of these weights (one seed), in percent:\n\n" + markdown(header, rows, words=2)


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
        lines.append("- Its memory grows with the square of the pixels at the logits' stride (4 bytes for each pair): cut large images.")
    lines.append("- The weights by themselves (safetensors) are for this project's code, which takes images of any size, by windows.")
    return "\n".join(lines) + "\n"


def files_of(written: Sequence[File]) -> str:
    """The files, and what their checks found."""
    rows = [(code(file.name), escaped(file.note), "" if file.check is None else escaped(words(file.check))) for file in written]
    return markdown(("file", "", "against the network itself"), rows, words=3)


def source(config: Config) -> str:
    """Whose it is."""
    made = "The code that made it is licensed under Apache-2.0. "
    if config.data.dataset == "scenes" and config.backbone.pretrained is False:
        return f"{made}Its images were generated by that code.\n"
    more = "" if config.backbone.pretrained is False else f" and from {escaped(start(config.backbone))}"
    return f"{made}The weights come from {escaped(data_of(config))}{more}: their owners' terms apply to what is made of them.\n"
