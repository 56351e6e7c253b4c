"""A run for others, without pickles: model.safetensors has the weights, config.json beside it all else that a weights file holds.

predictor = Predictor.load("exported/ecrf")        # pipeline/release/predictor.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.ground import files
from pipeline.ground.errors import UserError, explained
from pipeline.settings import config as configs
from pipeline.training.checkpoint import NOWHERE, Weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
VERSION = 1  # of config.json
REMEDY = "export the run again"


def write(folder: Path, weights: Weights, palette: Sequence[Sequence[int]]) -> None:
    """Write both files, each whole or not at all."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in weights.state.items()}
    # One entry alone: safetensors writes several in any order, and equal weights shall be equal bytes.
    files.write_bytes(folder / WEIGHTS, save(tensors, {"fingerprint": weights.fingerprint}))
    values = configs.to_dict(weights.config)
    del values["launch"]
    described = {
        "version": VERSION, "config": values, "classes": list(weights.classes), "palette": [list(colour) for colour in palette],
        "fingerprint": weights.fingerprint, "superpixels": dict(weights.superpixels),
    }  # fmt: skip
    files.write_json(folder / CONFIG, described)


def is_released(path: Path) -> bool:
    """Whether a path is such a folder, or one of its two files."""
    return path.name in (WEIGHTS, CONFIG) or (path / CONFIG).is_file() or (path / WEIGHTS).is_file()


def read(path: Path) -> tuple[Weights, tuple[tuple[int, int, int], ...]]:
    """The weights and the classes' colours of a folder, or of one of its files; UserError where either is absent, damaged or another's."""
    folder = path.parent if path.name in (WEIGHTS, CONFIG) else path
    raw = files.read_json(folder / CONFIG, REMEDY)
    try:
        if raw["version"] != VERSION:
            raise UserError(f"{folder / CONFIG} is of version {raw['version']}, this code reads version {VERSION}: {REMEDY}")
        config = configs.from_dict({**raw["config"], "launch": NOWHERE})
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in raw["palette"])
        classes, fingerprint, superpixels = tuple(raw["classes"]), str(raw["fingerprint"]), dict(raw["superpixels"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG} is no export of this project, or damaged ({type(error).__name__} {error}): {REMEDY}") from None
    state, mark = _tensors(folder / WEIGHTS)
    if mark != fingerprint:
        raise UserError(f"{folder / WEIGHTS} ({mark}) and {CONFIG} ({fingerprint}) are of different runs: {REMEDY}")
    return Weights(config, classes, fingerprint, superpixels, state), palette


def _tensors(path: Path) -> tuple[dict[str, Any], str | None]:
    """The tensors, and the fingerprint that they were written with."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} does not exist: {REMEDY}")
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, (opened.metadata() or {}).get("fingerprint")  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:100]}): {REMEDY}") from None
    except OSError as error:
        raise explained(error, f"cannot read {path}") from None
