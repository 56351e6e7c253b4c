"""Pairs per second from files to the store: a part of `benchmarks.loading`, without torch, which its processes would import too."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures import ADE20K, CITYSCAPES, CLASSES, Like, generate, title
from pipeline.datasets.folder import Folder
from pipeline.ground import workers
from pipeline.preparation import pairs

LIKE = {like.name: like for like in (CITYSCAPES, ADE20K)}
HEADER = "| preparing | processes | pairs | pairs/s | MB/s | CPU a pair | all of it |\n|---|--:|--:|--:|--:|--:|--:|"


def command(like: Like, pictures: int) -> Sequence[str]:
    """What runs this part in a process of its own."""
    return [sys.executable, "-m", "benchmarks.preparing", like.name, str(pictures)]


def main() -> None:
    """Print the lines of one dataset."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparing", description=__doc__)
    parser.add_argument("like", choices=LIKE)
    parser.add_argument("pictures", type=int)
    options = parser.parse_args()
    like, pictures, few = LIKE[options.like], options.pictures, workers.FEW
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own"
        megabytes = generate(like, pictures, own) / 1e6
        for processes in (1, min(workers.cores(), pictures)):
            workers.FEW = pictures if processes == 1 else few  # so many are done without further processes
            os.environ["DATA_STORE"] = f"{folder}/store-{processes}"
            began, worked = time.perf_counter(), used()
            pairs.prepare(Folder(own, classes=CLASSES), "folder", Path("unused"))
            spent = time.perf_counter() - began
            first = title(like) if processes == 1 else ""
            cells = (first, processes, f"{pictures} of {like.files}", f"{pictures / spent:.1f}", f"{megabytes / spent:.0f}")
            cells += (f"{1000 * (used() - worked) / pictures:.1f} ms", f"{like.files * spent / pictures / 60:.1f} min")
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def used() -> float:
    """CPU seconds of this process and those that it has waited for: what a busy machine does not change much."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
