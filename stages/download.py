"""Download the dataset's archives: `uv run python -m stages.download`.

Publishes data/archives.json with their checksums, and the state of the user's own folder; nothing else in it depends on
the machine, so that equal archives make equal files and whatever was prepared from them stays valid.
"""

import argparse
import hashlib
from pathlib import Path

from pipeline.download import archives
from pipeline.ground import files
from pipeline.settings import config
from stages.command import run

MANIFEST = Path("data/archives.json")


def main() -> None:
    """Check params.yaml, then fetch what its dataset needs."""
    from pipeline import datasets
    from stages.check import check

    parser = argparse.ArgumentParser(prog="uv run python -m stages.download", description="Download and check the dataset's archives.")
    parser.add_argument("--accept", metavar="NAME", action="append", default=[], help="trust the changed content of this archive")
    accepted = parser.parse_args().accept
    params = config.load()
    check(params)
    wanted = {archive.name: archive for archive in datasets.build(params.data).archives}
    for name in accepted:
        archives.forget(config.find(wanted, name, f"dataset {params.data.dataset}", params.path))
    archives.refuse_gated(wanted.values())
    fetched = {name: archives.fetch(archive) for name, archive in wanted.items()}
    for name, archive in fetched.items():
        print(f"{name}: {archive.size / 1e6:.1f} MB in {archive.path}, SHA-256 {archive.sha256[:16]}...")
    if not fetched:
        print(f"{params.data.dataset}: nothing to download")
    entries = {name: {"sha256": archive.sha256, "size": archive.size} for name, archive in fetched.items()}
    files.write_json(MANIFEST, {"dataset": params.data.dataset, "archives": entries, "root": state_of(params.data.root)})


def state_of(root: Path) -> str:
    """A hash that changes when the user's folder does: DVC watches `root` for this stage alone, and this file for the next."""
    if root.is_file():
        return files.sha256(root)
    found = ((path.relative_to(root).as_posix(), path.stat()) for path in sorted(root.rglob("*")) if path.is_file())
    listing = "\n".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in found)
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


if __name__ == "__main__":
    raise SystemExit(run(main))
