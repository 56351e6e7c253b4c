"""Only what a score depends on, and what an evaluation leaves: inference, windows, metrics, boundary F, dense CRF, counts, pictures.

An edit here evaluates anew and retrains nothing. It imports models, training, tracking and what is below.
"""
