"""The content-addressed store of images, label maps and superpixel maps.

It is undeclared to DVC (60,000 small files as outs make a no-op run take 15 s); the manifests that name its files by
hash are what DVC watches: `data/prepared.json` and `data/superpixels/<set>.json`.

    data/store/<kind>/<first two digits>/<name>       kind: images, labels, superpixels
"""

import os
from pathlib import Path

from pipeline.ground.errors import UserError

PREPARED = Path("data/prepared.json")


def root() -> Path:
    """The store's folder: `DATA_STORE`, or `data/store`."""
    return Path(os.environ.get("DATA_STORE") or "data/store")


def path(kind: str, name: str) -> Path:
    """Where the file `name` (its hash and suffix) of a kind lives, whether or not it exists."""
    return root() / kind / name[:2] / name


def existing(kind: str, name: str, remedy: str) -> Path:
    """The path of a file that must be there; a UserError says what is missing and `remedy`, the command that makes it."""
    found = path(kind, name)
    if not found.is_file():
        raise UserError(f"{found} is missing from the store: `{remedy}` gets it back")
    return found


def manifest_of(superpixels: str) -> Path:
    """The manifest of a named superpixel set."""
    return Path("data/superpixels") / f"{superpixels}.json"
