"""What a run's weights depend on, and its hash.

A fingerprint covers the resolved settings (all but the name, the list of seeds and the launch profile) and the inputs: the
hashes of the manifests read and of the code files that dvc.yaml lists for the stage, the versions of the libraries that compute,
and a finetune's parent file. Settings alone would not do: after an edit of a head's file a run would "resume" at its last step and
publish the old weights.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.backbones import backbone, weights
from pipeline.ground import files, store
from pipeline.ground.errors import UserError
from pipeline.settings import config as configs
from pipeline.settings.schema import Config, Inputs

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "timm", "torchvision", "numpy", "pillow")
# dvc.yaml lists the same files as the training stages' deps; a test holds the two equal.
CODE = (
    "models/segmenter.py",
    "models/backbones",
    "models/parts",
    "models/filters",
    "models/kernels",
    "pipeline/runs/trainer.py",
    "pipeline/training/step.py",
    "pipeline/training/batches.py",
    "pipeline/data/prepared.py",
    "pipeline/training/augment.py",
    "pipeline/training/optim.py",
    "pipeline/training/distributed.py",
    "pipeline/training/checkpoint.py",
)
# What a trial's score depends on besides.
SCORING = (
    "pipeline/evaluation/evaluate.py",
    "pipeline/evaluation/examples.py",
    "pipeline/evaluation/results.py",
    "pipeline/evaluation/inference.py",
    "pipeline/evaluation/windows.py",
    "pipeline/evaluation/metrics.py",
    "pipeline/evaluation/tally.py",
)


def code_files(config: Config) -> tuple[str, ...]:
    """The code that a run's weights depend on, relative to the project's root."""
    parts = (f"models/heads/{config.head.name}.py", f"models/crf/{config.crf.name}.py", f"models/losses/{config.loss.name}.py")
    return parts + CODE


def parent_file(config: Config) -> Path | None:
    """The weights file that a finetune's seed starts from; UserError where it is absent."""
    if config.finetune is None:
        return None
    source = config.finetune.source
    found = source / f"seed-{config.seed}.pt" if source.is_dir() else source
    if not found.is_file():
        raise UserError(f"finetune {config.name}: {found} does not exist: train its parent first, with seed {config.seed} too")
    return found


def stamp(config: Config) -> Config:
    """The config with its inputs' hashes, taken now: they travel with the job to wherever it runs."""
    libraries = (*LIBRARIES, *backbone.libraries(config.backbone.name))
    inputs = Inputs(
        manifests=manifest_hashes(config),
        code={path: tree_hash(ROOT / path) for path in code_files(config)},
        versions={name: importlib.metadata.version(name) for name in libraries},
        parent=parent_hash(config),
    )
    return replace(config, inputs=inputs)


def search_inputs(configs: Sequence[Config]) -> Inputs:
    """What the trials of a search depend on besides their settings; the configs stand for them, one for each part that they may name.

    Their superpixels are made from the prepared images as they need them, so that there is no manifest of these yet.
    """
    first = configs[0]
    pretrained = [config.backbone.pretrained for config in configs if isinstance(config.backbone.pretrained, Path)]
    paths = [store.PREPARED, *(path for path in pretrained if path.is_file())]
    code = {path for config in configs for path in code_files(config)} | set(SCORING)
    libraries = {library for config in configs for library in (*LIBRARIES, *backbone.libraries(config.backbone.name))}
    return Inputs(
        manifests={path.as_posix(): files.sha256(path) for path in paths},
        code={path: tree_hash(ROOT / path) for path in sorted(code)},
        versions={name: importlib.metadata.version(name) for name in sorted(libraries)},
        parent=parent_hash(first),
    )


def manifest_hashes(config: Config) -> dict[str, str]:
    """The SHA-256 of every data file that a run reads by name; UserError where one is absent."""
    read = {store.PREPARED: "prepare", store.manifest_of(config.superpixels): f"superpixels {config.superpixels}"}
    for manifest, stage in read.items():
        if not manifest.is_file():
            raise UserError(f"{manifest} does not exist: `uv run python -m stages.{stage}` makes it")
    paths = list(read)
    if isinstance(config.backbone.pretrained, Path):
        try:
            paths.append(weights.find(config.backbone.pretrained, config.backbone.name))
        except ValueError as error:
            raise UserError(f"{config.name}: {error}") from None
    return {path.as_posix(): files.sha256(path) for path in paths}


def parent_hash(config: Config) -> str | None:
    """The SHA-256 of the weights that a finetune's seed starts from."""
    parent = parent_file(config)
    return None if parent is None else files.sha256(parent)


def verify(config: Config) -> None:
    """Refuse to train on data that has changed since the config was stamped: the result would carry a wrong fingerprint."""
    assert config.inputs is not None
    if manifest_hashes(config) != config.inputs.manifests or parent_hash(config) != config.inputs.parent:
        raise UserError(f"{config.name}, seed {config.seed}: its data or parent has changed since this was started: start it again")


def tree_hash(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's Python files with their names."""
    if path.is_file():
        return files.sha256(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist: a part of the tables in models/ must stand in a file of its name")
    listing = [(entry.relative_to(path).as_posix(), files.sha256(entry)) for entry in sorted(path.rglob("*.py"))]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def settings(config: Config) -> dict[str, Any]:
    """Everything that the fingerprint covers, as plain values."""
    assert config.inputs is not None, "stamp the config first"
    values = configs.to_dict(config)
    for key in ("name", "launch"):
        del values[key]
    del values["train"]["seeds"]
    return values


def fingerprint(config: Config) -> str:
    """Sixteen hexadecimal digits that name what a stamped config's weights depend on."""
    return hashlib.sha256(json.dumps(settings(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two settings, one phrase each, such as `train.lr 0.01 -> 0.02`."""
    before, after = dict(flattened(old)), dict(flattened(new))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    return [phrase(key, before.get(key), after.get(key)) for key in changed]


def phrase(key: str, old: Any, new: Any) -> str:
    """One difference; hashes are not worth showing."""
    return (
        f"{key.removeprefix('inputs.')} changed"
        if key.startswith(("inputs.code", "inputs.manifests", "inputs.parent"))
        else f"{key} {old} -> {new}"
    )


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with dotted (for files: slashed) paths."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def same_but_code(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two settings differ in code hashes alone."""
    return without_code(old) == without_code(new)


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the code's hashes."""
    return {**values, "inputs": {key: value for key, value in values["inputs"].items() if key != "code"}}
