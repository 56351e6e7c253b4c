"""Compute the superpixel maps of every image of the prepared dataset and publish data/superpixels/<set>.json."""

import argparse

from pipeline.data import prepared
from pipeline.data.superpixel_maps import SuperpixelMaps
from pipeline.ground import store
from pipeline.settings import config
from pipeline.superpixels import sets
from stages.command import run


def main() -> None:
    """Make one set of params.yaml; maps that the store has already are not computed again."""
    parser = argparse.ArgumentParser(prog="uv run python -m stages.superpixels", description=__doc__)
    parser.add_argument("set", help="a name under `superpixels` in params.yaml")
    name = parser.parse_args().set

    params = config.load()
    settings = config.find(params.superpixels, name, "superpixels", params.path)
    pairs = [pair for split in prepared.read().splits.values() for pair in split] if settings else []
    made, computed = sets.publish(name, settings, pairs)
    print(f"superpixels {name}: {summary(made, computed)} > {store.manifest_of(name)}")


def summary(made: SuperpixelMaps, computed: int) -> str:
    """How many superpixels were asked for and given, and how many maps were there already."""
    if made.settings is None:
        return "an empty set, nothing to compute"
    counts = [entry.segments for entry in made.maps.values()]
    if not counts:
        return "the dataset has no images"
    given = f"{sum(counts) / len(counts):.1f} given on average ({min(counts)} to {max(counts)})"
    return f"{made.settings.segments} asked for, {given}; {computed} maps computed, {len(counts) - computed} found"


if __name__ == "__main__":
    raise SystemExit(run(main))
