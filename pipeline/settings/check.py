"""All of params.yaml tried against the code that its names stand for, before anything is downloaded, queued or trained.

A mistake in the last method stops the first. Networks are built on the meta device: no weights, no memory.
"""

from pathlib import Path
from typing import Any

from pipeline.ground.errors import UserError
from pipeline.settings.options import check_options
from pipeline.settings.schema import Config, Params, Part
from pipeline.settings.strict import suggestion


def check(params: Params) -> None:
    """Raise a UserError for the first thing in params.yaml that the code would refuse later."""
    dataset = check_data(params)
    if unused := (params.methods.keys() | params.finetunes.keys()) - {evaluation.of for evaluation in params.evaluations.values()}:
        from pipeline.ground.progress import warn

        for name in sorted(unused):
            warn(f"{params.path}: no evaluation names {name}; to evaluate it add `{name}: {{of: {name}}}` to evaluations")
    for kind, runs in (("methods", params.methods), ("finetunes", params.finetunes)):
        for config in runs.values():
            try:
                check_run(config, len(dataset.classes), params, f"{kind}.{config.name}")
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"{params.path}: {kind}.{config.name}: {error}") from None
    for evaluation in params.evaluations.values():
        if evaluation.split not in dataset.splits:
            raise UserError(
                f"{params.path}: evaluations.{evaluation.name}: {params.data.dataset} has no split {evaluation.split!r}"
                f"{suggestion(evaluation.split, dataset.splits)}"
            )
    if params.tune:
        from pipeline.search import space as search

        search.check(params, dataset.splits, len(dataset.classes))


def check_data(params: Params) -> Any:
    """The dataset, its name and options checked."""
    from pipeline import datasets

    where = f"{params.path}: data"
    check_options(datasets.DATASETS, Part(name=params.data.dataset, options=params.data.options), where, "dataset")
    try:
        return datasets.build(params.data)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def check_run(config: Config, classes: int, params: Params, place: str) -> None:
    """One run's parts, what fits together, and whether the model builds."""
    import torch

    from models.backbones import weights
    from models.crf import CRFS
    from models.crf.conv import Conv
    from models.heads import HEADS
    from models.losses import LOSSES
    from models.segmenter import build, build_loss
    from pipeline.training import optim

    file = params.path
    for slot, table, part in (("head", HEADS, config.head), ("crf", CRFS, config.crf), ("loss", LOSSES, config.loss)):
        check_options(table, part, f"{file}: {place}.{slot}", slot)
    with torch.device("meta"):
        model = build(config, classes)
    loss = build_loss(config, classes)
    if lacking := set(loss.needs) - {*model.head.extras, *model.crf.extras}:
        why = f"loss {config.loss.name} needs {' and '.join(sorted(lacking))}"
        raise UserError(f"{file}: {place}: {why}, which head {config.head.name} with crf {config.crf.name} does not give")
    optim.check_parts(model, config.train.multipliers, "train.multipliers", parameters=True)
    if isinstance(config.backbone.pretrained, Path):
        weights.find(config.backbone.pretrained, config.backbone.name)
    if model.crf.needs_superpixels and config.superpixel_set is None:
        raise UserError(
            f"{file}: {place}: crf {config.crf.name} averages over superpixels, but the set {config.superpixels} is empty: "
            f"name a set, or give the crf superpixel_weight: 0"
        )
    check_batch(config, model, f"{file}: {place}")
    if isinstance(model.crf, Conv) and "position" in model.crf.field:
        check_position(config, list(model.crf.field["position"].shape[1:]), model.crf.stride, params, place)
    if config.finetune is not None:
        optim.check_parts(model, config.finetune.freeze, "freeze")
        optim.freeze(model, config.finetune.freeze)
        optim.optimizer(model, config.train)
        if config.finetune.alternate and "unary" not in model.crf.extras:
            raise UserError(f"{file}: {place}.alternate: crf {config.crf.name} has no unary of its own to alternate with")
        if config.finetune.alternate and not optim.trains_the_unary(model):
            raise UserError(f"{file}: {place}.alternate: all but the crf is frozen: there is no unary to alternate with")


def check_batch(config: Config, model: Any, where: str) -> None:
    """Batch norm cannot be trained on one value per channel: a batch of 1 must leave more than that at every layer."""
    from models.backbones import backbone

    if (batch := config.train.batch_size // config.train.accumulate) < model.head.smallest_batch:
        why = f"head {config.head.name} pools images to one value, which a batch of 1 cannot normalise"
        raise UserError(f"{where}: {why}: batch_size / accumulate must be at least {model.head.smallest_batch}")
    stride = backbone.shape(model.backbone)[1][-1]
    if batch == 1 and max(config.data.crop) <= stride:
        why = f"data.crop {list(config.data.crop)} is one pixel at the backbone's stride {stride}, which a batch of 1 cannot normalise"
        raise UserError(f"{where}: {why}: a larger crop, or batch_size / accumulate of at least 2")


def check_position(config: Config, learned: list[int], stride: int, params: Params, place: str) -> None:
    """The coordinates that a ConvCRF learns have one size: the crop's in training, in an evaluation that of every window."""
    crop, expected = config.data.crop, [-(-length // stride) for length in config.data.crop]
    if learned != expected:
        why = f"must be {expected}, which is data.crop {list(crop)} divided by its stride {stride}, not {learned}"
        raise UserError(f"{params.path}: {place}.crf.position {why}")
    for evaluation in params.evaluations.values():
        if evaluation.of == config.name and (evaluation.mode, evaluation.window, evaluation.scales) != ("slide", crop, (1.0,)):
            way = f"mode: slide, window: {list(crop)}, a stride and scales: [1.0]"
            why = f"{config.name} has learned its crf's position for {crop[0]} x {crop[1]} pixels: give it {way}"
            raise UserError(f"{params.path}: evaluations.{evaluation.name}: {why}")


def check_prepared(params: Params) -> None:
    """Refuse prepared data of another dataset than params.yaml names."""
    from pipeline.data import prepared

    found = prepared.read().dataset
    if found != params.data.dataset:
        remedy = "run `uv run dvc repro prepare`"
        raise UserError(f"{params.path}: data.dataset is {params.data.dataset}, but data/prepared.json is of {found}: {remedy}")
