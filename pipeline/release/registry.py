"""Exported runs in MLflow's registry: `models:/NAME/VERSION`. Here MLflow is the work, so that its errors are the user's.

What is registered are pipeline/release/released.py's files and this project's code; served.py loads them. Without an order nothing is.
"""

import contextlib
import hashlib
import importlib.util
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.backbones.backbone import libraries
from pipeline.ground import files
from pipeline.ground.codebase import ROOT
from pipeline.ground.errors import UserError
from pipeline.release import released
from pipeline.tracking import copy
from pipeline.tracking.attempt import Attempt, address, identity, reason, shown

# What models/ and pipeline/ import to predict, besides what the backbone needs.
REQUIREMENTS = ("torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "pyyaml", "rich", "safetensors", "scikit-image", "scipy")


def register(folder: Path, name: str) -> str:
    """Make an exported run a version of `name`, once; returns a line that says which.

    The version belongs to the training's run, which is begun where MLflow lacks it. UserError: MLflow is absent or away, or refuses it.
    """
    weights, _ = released.read(folder)
    config = weights.config
    attempt = Attempt(
        experiment=config.data.dataset, name=config.name, seed=config.seed, fingerprint=weights.fingerprint, status="FINISHED",
        started=time.time(),
    )  # fmt: skip
    parts = (released.CONFIG, released.WEIGHTS)
    content = hashlib.sha256("".join(files.sha256(folder / part) for part in parts).encode()).hexdigest()
    with client_for(f"{name} is not registered") as client, files.locked(Path("mlflow.db.lock"), "mlflow.db", wait=True):
        known = [made for made in client.search_model_versions(f"name = '{name}'") if made.tags.get("content") == content]
        if known:
            return f"models:/{name}/{known[0].version} is this run already"
        if not client.search_registered_models(f"name = '{name}'"):  # a name that MLflow refuses leaves nothing behind
            client.create_registered_model(name)
        run = copy.find(client, attempt) or copy.begin(client, attempt)
        with copy.library().start_run(run_id=run.info.run_id), tempfile.TemporaryDirectory() as space:
            for part in (*parts, "README.md"):
                shutil.copy(folder / part, space)
            made = log_model(Path(space), (*REQUIREMENTS, *libraries(config.backbone.name)))
        if run.info.end_time is not None:  # to log a model is no part of the training
            client.set_terminated(run.info.run_id, run.info.status, run.info.end_time)
        tags = {**identity(attempt), "content": content}
        version_of = client.create_model_version(name, made.model_uri, run.info.run_id, tags=tags, model_id=made.model_id)
    return f"models:/{name}/{version_of.version} at {shown(address())}"


def log_model(folder: Path, requirements: Sequence[str]) -> Any:
    """The files as a pyfunc model with this project's code. Its inputs have no schema: arrays of any size and paths are taken."""
    import numpy as np

    mlflow = copy.library()
    labels = mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype("uint8"), (-1, -1), "labels")])
    with tempfile.TemporaryDirectory() as space, contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):  # its advice
        for part in ("models", "pipeline"):
            shutil.copytree(ROOT / part, Path(space, part), ignore=shutil.ignore_patterns("__pycache__"))
        return mlflow.pyfunc.log_model(
            name="model", loader_module="pipeline.release.served", data_path=str(folder),
            code_paths=[f"{space}/models", f"{space}/pipeline"], signature=mlflow.models.ModelSignature(outputs=labels),
            pip_requirements=[f"{name}=={version(name)}" for name in requirements],
        )  # fmt: skip


def downloaded(uri: str) -> Path:
    """The exported files of `models:/NAME/VERSION`, or of an alias, `models:/NAME@ALIAS`; UserError where they cannot be had."""
    with client_for(f"{uri} cannot be had"):
        folder = Path(copy.library().artifacts.download_artifacts(artifact_uri=uri))
        found = sorted(path for path in folder.glob(f"**/{released.CONFIG}") if released.is_released(path))
    if not found:
        raise UserError(f"{uri} is no model that stages.export registered")
    return found[0].parent


@contextlib.contextmanager
def client_for(failed: str) -> Iterator[Any]:
    """A client of MLflow; whatever it raises becomes one line."""
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(f"{failed}: mlflow is not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's and its libraries' about themselves
            yield copy.connect()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{failed}: MLflow at {shown(address())}: {reason(error)}") from None
