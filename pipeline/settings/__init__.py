"""params.yaml and launch profiles, read strictly into frozen dataclasses; a mistake is one line.

An edit here retrains nothing (the values are watched, not how they are read), but of presets.py, which evaluations depend on.
It imports ground.
"""
