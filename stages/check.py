"""All of params.yaml tried against the code that its names stand for, before anything is downloaded, queued or trained.

A mistake in the last method stops the first.
"""

from typing import Any

from pipeline.ground.errors import UserError
from pipeline.settings.options import check_options
from pipeline.settings.schema import Params, Part
from pipeline.settings.strict import suggestion


def check(params: Params) -> None:
    """Raise a UserError for the first thing in params.yaml that the code would refuse later."""
    from pipeline.runs.check import check_run

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
        from pipeline.search import space

        space.check(params, dataset.splits, len(dataset.classes))


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


def check_prepared(params: Params) -> None:
    """Refuse prepared data of another dataset than params.yaml names."""
    from pipeline.data import prepared

    found = prepared.read().dataset
    if found != params.data.dataset:
        remedy = "run `uv run dvc repro prepare`"
        raise UserError(f"{params.path}: data.dataset is {params.data.dataset}, but data/prepared.json is of {found}: {remedy}")
