"""What the stages `train` and `finetune` share: check everything, train what is not finished, publish."""

import argparse
from collections.abc import Mapping
from dataclasses import replace

from pipeline.data import prepared
from pipeline.runs import fingerprint as fingerprints
from pipeline.runs import folders
from pipeline.settings import config
from pipeline.settings.schema import Config
from pipeline.training import checkpoint
from stages.check import check, check_prepared


def train_command(stage: str, what: str) -> None:
    """The command `python -m stages.<stage>`, which trains a `method` or a `finetune` of params.yaml."""
    parser = argparse.ArgumentParser(prog=f"uv run python -m stages.{stage}", description=f"Train a {what} of params.yaml.")
    parser.add_argument("name", help=f"a key of `{what}s` in params.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--overfit-one-batch", action="store_true", help="sanity check: learn one batch by heart, write nothing")
    options = parser.parse_args()
    train_run(f"{what}s", options.name, dry_run=options.dry_run, overfit=options.overfit_one_batch)


def train_run(kind: str, name: str, *, dry_run: bool = False, overfit: bool = False) -> None:
    """Train all seeds of params.yaml's `kind` entry `name` and publish runs/<name>/weights."""
    params = config.load()
    table: Mapping[str, Config] = params.methods if kind == "methods" else params.finetunes
    chosen = config.find(table, name, kind, params.path)
    check(params)
    check_prepared(params)
    seeds = [fingerprints.stamp(config.with_seed(chosen, seed)) for seed in chosen.train.seeds]
    if dry_run:
        print(plan(seeds))
    elif overfit:
        from cluster.local import launch
        from pipeline.runs.overfit import overfit_one_batch

        launch(overfit_one_batch, replace(seeds[0], launch=replace(seeds[0].launch, processes=1)))
    else:
        train_seeds(seeds)


def train_seeds(seeds: list[Config]) -> None:
    """Train what is not finished, one seed after the other (side by side where there is a queue), and publish all."""
    from cluster import launch, submit
    from pipeline.runs.trainer import train

    for seed in seeds:
        folders.adopt_or_warn(seed)
    submit(train, [seed for seed in seeds if not folders.is_finished(seed)])
    for seed in seeds:
        if folders.is_finished(seed):
            print(f"{seed.name}, seed {seed.seed}: finished before, collected from {folders.finished_folder(seed)}")
        else:
            launch(train, seed)
    print(f"{seeds[0].name}: weights in {folders.collect(seeds[0], seeds)}")


def plan(seeds: list[Config]) -> str:
    """What training would do, for people."""
    first = seeds[0]
    train, launch, millions = first.train, first.launch, parameters(first) / 1e6
    from pipeline.training.batches import training_images

    images = len(training_images(first, prepared.read()))
    share = train.batch_size // launch.world // train.accumulate
    lines = [
        f"run         {first.name}: head {first.head.name}, crf {first.crf.name}, loss {first.loss.name}, superpixels {first.superpixels}",
        f"network     {first.backbone.name}, output stride {first.backbone.output_stride}, {millions:.2f} million parameters",
        f"data        {first.data.dataset}: {images} training images, crop {first.data.crop[0]} x {first.data.crop[1]}",
        f"steps       {train.iterations} of {train.batch_size} images: {train.iterations * train.batch_size / images:.1f} epochs",
        f"optimizer   {train.optimizer}, lr {train.lr}, {train.precision}",
        f"where       {launch.name}: {launch.world} process(es) x {train.accumulate} part(s) x {share} images",
    ]
    for seed in seeds:
        lines.append(f"seed {seed.seed:<6} {fingerprints.fingerprint(seed)}: {state(seed)}")
    return "\n".join(lines)


def state(seed: Config) -> str:
    """Whether a seed is finished, or where it would go on."""
    if folders.is_finished(seed):
        return "finished; would be collected"
    found = checkpoint.steps(folders.checkpoint_folder(seed))
    return f"would go on from step {found[-1]}" if found else "would train from the start"


def parameters(seed: Config) -> int:
    """The number of parameters, counted without memory."""
    import torch

    from models.segmenter import build

    with torch.device("meta"):
        model = build(seed, len(prepared.read().classes))
    return sum(parameter.numel() for parameter in model.parameters())
