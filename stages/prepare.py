"""Check every image and label of the dataset and put them into the store: `uv run python -m stages.prepare`.

Publishes data/prepared.json, which names the pairs of every split by the hashes of their content.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.command import run

if TYPE_CHECKING:
    from pipeline.datasets import Dataset
    from pipeline.download.archives import Archive


def main() -> None:
    """Prepare the dataset that params.yaml names."""
    description = "Check every image and label of the dataset and put them into the store."
    argparse.ArgumentParser(prog="uv run python -m stages.prepare", description=description).parse_args()

    from pipeline.data import prepared
    from pipeline.ground.errors import UserError
    from pipeline.ground.progress import warn
    from pipeline.preparation import pairs, summary
    from pipeline.settings import config
    from stages.check import check_data

    params = config.load()
    dataset = check_data(params)
    name = params.data.dataset
    folders = folders_of(dataset, name)
    try:
        published, pixels = pairs.prepare(dataset, name, *folders)
    except UserError as error:
        for archive, folder in zip(dataset.archives, folders, strict=False):
            if str(error).startswith(f"{folder}"):
                raise UserError(f"{error} (this folder is what was in {archive.name}: is it another archive of that name?)") from None
        raise
    prepared.write(published)
    for line in summary.lines(published, pixels):
        print(line)
    for line in summary.doubts(published, pixels):
        warn(line)


def folders_of(dataset: "Dataset", name: str) -> list[Path]:
    """Where the dataset's archives were extracted (which happens here), or where it may put files of its own."""
    from pipeline.download import archives
    from pipeline.ground import files, store

    if not dataset.archives:
        return [store.root() / "generated" / name]
    fetched = files.read_json(Path("data/archives.json"), f"run `{archives.COMMAND}`")
    return [folder_of(archive, fetched) for archive in dataset.archives]


def folder_of(archive: "Archive", fetched: Any) -> Path:
    """Where one archive was extracted; `fetched` is what the download published."""
    from pipeline.download import archives, extraction
    from pipeline.ground.errors import UserError

    try:
        sha256 = fetched["archives"][archive.name]["sha256"]
    except (KeyError, TypeError):
        raise UserError(f"data/archives.json does not name {archive.name}: run `{archives.COMMAND}`") from None
    folder = extraction.folder_of(sha256)
    if folder.is_dir():  # the archive may be gone
        extraction.refuse_losses(folder)
        return folder
    return extraction.extracted(archives.locate(archive), sha256)


if __name__ == "__main__":
    raise SystemExit(run(main))
