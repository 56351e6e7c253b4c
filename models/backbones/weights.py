"""Files of a backbone's weights: found, read without running their code, copied in by name and shape."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import mit


def find(path: Path, name: str) -> Path:
    """The file that `path` means: itself, or in a folder the one that is called like the backbone, or lies in a folder so called."""
    if path.is_dir():
        stems = dict.fromkeys((name, name.partition(".")[0]))
        wanted = [f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".pth", ".pt")]
        wanted += [f"{stem}/{file}" for stem in stems for file in ("model.safetensors", "pytorch_model.bin")]  # as the hub has them
        found = [path / file for file in wanted if (path / file).is_file()]
        if not found:
            raise ValueError(f"backbone.pretrained: {path} has no {', '.join(wanted)}")
        return found[0]
    if not path.is_file():
        raise ValueError(f"backbone.pretrained: {path} does not exist; give a file of weights, or false to train from scratch")
    return path


def read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors or torch file, where need be out of the checkpoint that holds them. Runs no code of the file."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, not a file of weights, or with pickled code
        raise ValueError(f"backbone.pretrained: {file} cannot be read as weights ({' '.join(str(error).split())[:200]})") from None
    for key in ("state_dict", "model", "weights"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(f"backbone.pretrained: {file} holds no weights")
    return tensors


def load(network: nn.Module, file: Path, name: str) -> str:
    """Copy a file's weights into a backbone, by name and shape; a line that says what was and was not loaded."""
    tensors = read(file)
    given = {plain(key): (key, value) for key, value in (mit.renamed(tensors) if name in mit.VARIANTS else tensors).items()}
    own = network.state_dict()
    fitting = {key: given[plain(key)][1] for key in own if plain(key) in given and given[plain(key)][1].shape == own[key].shape}
    if not any(own[key].dim() > 1 for key in fitting):
        raise ValueError(f"backbone.pretrained: {file} has no weights of {name} (it begins with {', '.join(list(given)[:3])})")
    network.load_state_dict(fitting, strict=False)
    missing = [key for key in own if key not in fitting]
    used = {plain(key) for key in fitting}
    unused = [key for short, (key, _) in given.items() if short not in used]
    return summary(network, name, str(file), missing, unused)


def summary(network: nn.Module, name: str, origin: str, missing: list[str], unused: list[str]) -> str:
    """What was loaded, and the tensors of the backbone and of the file that have no counterpart."""
    total = len(network.state_dict())
    lines = [f"backbone {name}: {total - len(missing)} of {total} tensors loaded from {origin}"]
    lines += [f"without weights: {_some(missing)}"] * bool(missing) + [f"unused: {_some(unused)}"] * bool(unused)
    return "; ".join(lines)


def plain(key: str) -> str:
    """A key without wrappers' prefixes; timm's feature extractors write stages_0.x for stages.0.x."""
    return re.sub(r"^(module\.|model\.|_orig_mod\.|backbone\.)+", "", key).replace(".", "_")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
