"""Only what a weight depends on: batches, augmentation, the step, the loop, the optimizer, ranks, checkpoints.

An edit here trains everything anew: what cannot change a weight belongs in runs. It imports models, data, settings and ground.
"""
