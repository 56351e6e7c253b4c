"""What a finetune starts from: the weights of another run."""

from pathlib import Path

from torch import nn

from pipeline.ground.errors import UserError
from pipeline.ground.progress import warn
from pipeline.settings.schema import Config
from pipeline.training import checkpoint
from pipeline.training.distributed import rank


def parent_file(config: Config) -> Path | None:
    """The weights file that a finetune's seed starts from; UserError where it is absent."""
    if config.finetune is None:
        return None
    source = config.finetune.source
    found = source / f"seed-{config.seed}.pt" if source.is_dir() else source
    if not found.is_file():
        raise UserError(f"finetune {config.name}: {found} does not exist: train its parent first, with seed {config.seed} too")
    return found


def inherit(config: Config, model: nn.Module) -> None:
    """Load a finetune's parent; tensors of other names or shapes are skipped and named."""
    path = parent_file(config)
    assert path is not None
    theirs, ours = checkpoint.read_weights(path).state, model.state_dict()
    fitting = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    if not any(tensor.dim() > 1 for tensor in fitting.values()):
        raise UserError(f"finetune {config.name}: {path} has no tensor that fits this network: is it another backbone?")
    skipped = sorted((theirs.keys() | ours.keys()) - fitting.keys())
    if skipped and rank() == 0:
        warn(f"{config.name}: {len(fitting)} tensors come from {path}; not taken over: {', '.join(skipped)}")
    model.load_state_dict(fitting, strict=False)
