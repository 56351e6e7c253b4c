"""Checkpoints to go on from, and the weights files that are published.

runs/<name>/checkpoints/<fingerprint>/seed-<s>/step-<n>.pt    for resuming; may be deleted at any time
runs/<name>/weights/seed-<s>.pt                               what evaluation, finetunes and predictions read
"""

import contextlib
import pickle
import socket
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.ground.errors import UserError
from pipeline.ground.files import replacing
from pipeline.ground.progress import warn
from pipeline.settings import config as configs
from pipeline.settings.schema import Config

DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError, zipfile.BadZipFile)
SEEN = 60.0  # seconds until every node of a shared disk sees a file
NOWHERE = {"name": "none", "backend": "local"}  # a weights file does not say where it was trained


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint of `step` finished steps, whole or not at all, and delete all but the last `keep`.

    The one writer (the seed's lock admits no other) is at `step`, so what claims to be further, the damaged files that
    `latest` set aside and the temporary files of writers that were killed are of no use any more: they go too.
    """
    with replacing(path_of(folder, step)) as file:
        torch.save(dict(state), file)
    found = steps(folder)
    kept = [number for number in found if number <= step][-keep:]
    remains = [*folder.glob(".step-*.tmp"), *folder.glob("step-*.pt.damaged")]
    for path in [*remains, *(path_of(folder, number) for number in found if number not in kept)]:
        with contextlib.suppress(OSError):
            path.unlink()


def path_of(folder: Path, step: int) -> Path:
    """The file of a step."""
    return folder / f"step-{step}.pt"


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint in `folder`, ascending."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.pt") if path.stem.removeprefix("step-").isdigit())


def latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest readable checkpoint and its step; a damaged one is set aside as *.damaged, with a warning."""
    for step in reversed(steps(folder)):
        path = path_of(folder, step)
        try:
            return step, torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:  # another process has set it aside
            continue
        except DAMAGE as error:
            with contextlib.suppress(OSError):
                path.replace(f"{path}.damaged")
            warn(f"{path} is damaged ({type(error).__name__}) and passed over for the one before it")
    return None


def read(folder: Path, step: int) -> dict[str, Any]:
    """The checkpoint of a step that rank 0 has read: another node may see it a while later. UserError where it does not."""
    path, limit = path_of(folder, step), time.monotonic() + SEEN
    while True:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGE as error:
            if time.monotonic() > limit:
                remedy = "do all nodes share the project's folder?"
                raise UserError(f"{path} cannot be read on {socket.gethostname()} ({type(error).__name__}): {remedy}") from None
        time.sleep(1)


@dataclass(frozen=True)
class Weights:
    """A published weights file: the config it was trained with, its classes' names, what it came from, and the tensors."""

    config: Config
    classes: tuple[str, ...]
    fingerprint: str
    superpixels: Mapping[str, str]  # the set's name, and the SHA-256 of its manifest
    state: dict[str, Tensor]


def weights_payload(config: Config, classes: tuple[str, ...], fingerprint: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a weights file holds; the launch profile is left out, for it cannot change a weight."""
    assert config.inputs is not None
    values = configs.to_dict(config)
    del values["launch"]
    manifest = next(sha for path, sha in config.inputs.manifests.items() if "superpixels" in path)
    return {
        "config": values,
        "classes": list(classes),
        "fingerprint": fingerprint,
        "superpixels": {"set": config.superpixels, "sha256": manifest},
        "weights": {name: tensor.detach().cpu().clone() for name, tensor in state.items()},
    }


def read_weights(path: Path) -> Weights:
    """Read a published weights file; UserError where it is absent, damaged or something else."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        return Weights(
            config=configs.from_dict({**payload["config"], "launch": NOWHERE}),
            classes=tuple(payload["classes"]),
            fingerprint=payload["fingerprint"],
            superpixels=payload["superpixels"],
            state=payload["weights"],
        )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: train the run first") from None
    except DAMAGE as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0].split(". ")[0]  # torch goes on about its own settings
        raise UserError(f"{path} is no weights file of this project, or damaged ({reason})") from None
