"""Weights at work: predictions on files of any size, exported graphs with their card, MLflow's registry, serving.

No stage of dvc.yaml depends on it. It imports report (how Markdown is written), evaluation and what is below.
"""
