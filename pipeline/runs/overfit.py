"""A sanity check: a network that cannot learn one batch by heart will not learn a dataset."""

from models.backbones import backbone
from pipeline.data import prepared
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Config
from pipeline.training import batches
from pipeline.training.batches import Fault
from pipeline.training.distributed import process_group
from pipeline.training.loop import begin

STEPS = 100
FALL = 0.5  # the loss must fall below this share of its first value


def overfit_one_batch(config: Config) -> None:
    """Train on the first batch alone, print how the loss falls, and write nothing.

    Raises UserError when the loss does not fall to half.
    """
    with process_group(config.launch) as device:
        manifest = prepared.read()
        training = begin(config, manifest.classes, device)
        mean, _ = backbone.normalization(config.backbone.name)
        batch = next(batches.train_batches(config, manifest, start=0, rank=0, world=1, mean=mean, pin=False))
        if isinstance(batch, Fault):
            raise UserError(batch.message)
        losses = []
        for number in range(min(STEPS, config.train.iterations)):
            losses.append(sum(training.step(batch, number).values()))
            if number % 10 == 0:
                print(f"step {number}: loss {losses[-1]:.4f}", flush=True)
        first, last = (sum(two) / len(two) for two in (losses[:2], losses[-2:]))  # steps may alternate between two losses
        verdict = f"the loss on one batch went from {first:.4f} to {last:.4f} in {len(losses)} steps"
        if last > FALL * first:
            raise UserError(f"{verdict}: {config.name} does not learn it; try another train.lr")
        print(f"{verdict}: {config.name} can learn")
