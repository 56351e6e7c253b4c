"""A search over params.yaml's numbers: what is searched, tried and found. Where trials run is cluster/search.py.

No stage of dvc.yaml depends on it; a search is known by its settings and by what its trials depend on. It imports what is below.
"""
