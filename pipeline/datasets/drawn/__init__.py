"""Generated street scenes: how they are painted, from colours and noise through the canvas and what is painted on it to the picture.

An edit here makes new scenes, of which models are trained anew. Imports `pipeline.datasets` (never its `scenes`), else nothing of ours.
"""
