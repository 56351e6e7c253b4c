"""results/<evaluation>/images.npz: every image's and every class's numbers behind an evaluation's means, and small predictions.

The results file has means; to find the images on which a class fails, or what it is taken for, the report needs the counts
themselves. They are whole pixels, so that sums over images give the results file's scores again.
"""

import io
import json
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.ground import files
from pipeline.ground.codebase import commit
from pipeline.ground.errors import UserError

RESULTS = Path("results")  # of all evaluations
NAME = "images.npz"
LONGEST = 640  # pixels of a kept prediction; larger ones are kept smaller
KEPT = 2000  # predictions of one evaluation, evenly spread over a larger split
VERSIONS = ("torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Record:
    """The counts of an evaluation, in pixels of labelled image. S seeds, P protocols, N images, K classes.

    `maps` are the first seed's predictions with several scales and flips, zlib's bytes of (height, width) class ids by the image's
    index. `about` says what ran where (see `about`).
    """

    names: tuple[str, ...]
    confusion_SPKK: NDArray[np.int64]  # rows are labels
    hits_SPNK: NDArray[np.int64]
    unions_SPNK: NDArray[np.int64]
    labelled_NK: NDArray[np.int64]
    maps: Mapping[int, tuple[tuple[int, int], bytes]]
    about: Mapping[str, Any]

    def prediction(self, index: int) -> NDArray[np.uint8] | None:
        """An image's class ids (H, W), at most `LONGEST` on a side; None where none was kept."""
        if index not in self.maps:
            return None
        size, content = self.maps[index]
        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(size)


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """The width and height at which an image of (width, height) is kept and shown."""
    factor = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def packed(ids_HW: NDArray[np.uint8]) -> tuple[tuple[int, int], bytes]:
    """A prediction as `Record.maps` has it."""
    size = reduced((ids_HW.shape[1], ids_HW.shape[0]))
    small_HW = np.asarray(Image.fromarray(ids_HW).resize(size, Image.Resampling.NEAREST))
    return (size[1], size[0]), zlib.compress(small_HW.tobytes(), 6)


def kept(images: int) -> frozenset[int]:
    """The indices of the images whose predictions are kept."""
    count = min(KEPT, images)
    return frozenset((2 * index + 1) * images // (2 * count) for index in range(count))


def about(device: str, fingerprints: Mapping[int, str], data_sha256: str) -> dict[str, Any]:
    """What an evaluation was run with, and on."""
    versions = {name: metadata.version(name) for name in VERSIONS}
    return {
        "commit": commit(),
        "data": data_sha256,
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | versions,
        "weights": {str(seed): fingerprint for seed, fingerprint in fingerprints.items()},
    }


def write(path: Path, record: Record) -> None:
    """Write the record, whole or not at all: equal content, equal bytes."""
    indices = sorted(record.maps)
    contents = [record.maps[index][1] for index in indices]
    arrays = {
        "names": np.array(record.names, np.str_),
        "confusion": record.confusion_SPKK,
        "hits": record.hits_SPNK.astype(np.uint32),
        "unions": record.unions_SPNK.astype(np.uint32),
        "labelled": record.labelled_NK.astype(np.uint32),
        "map_indices": np.array(indices, np.int64),
        "map_sizes": np.array([record.maps[index][0] for index in indices], np.int64).reshape(-1, 2),
        "map_ends": np.cumsum([len(content) for content in contents], dtype=np.int64),
        "map_bytes": np.frombuffer(b"".join(contents), np.uint8),
        "about": np.array(json.dumps(dict(record.about), sort_keys=True)),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())


def read(path: Path, classes: int, remedy: str) -> Record | None:
    """The record of an evaluation; None where there is none, as beside results of an older version.

    Raises UserError, with the `remedy`, for a damaged one and for one of another number of classes.
    """
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:  # a damaged file would be left open
            arrays = {name: stored[name] for name in stored.files}
        made = assembled(arrays)
    except Exception as error:  # a damaged archive ends in exceptions of every kind
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    N, K = made.labelled_NK.shape
    if classes != K:
        raise UserError(f"{path} has {K} classes, but data/prepared.json has {classes}: {remedy}")
    if len(made.names) != N or made.hits_SPNK.shape[2:] != (N, K) or made.confusion_SPKK.shape[2:] != (K, K):
        raise UserError(f"{path} is damaged (its arrays do not fit together): {remedy}")
    return made


def assembled(arrays: Mapping[str, NDArray[Any]]) -> Record:
    """The record from the arrays of its file."""
    content, ends = arrays["map_bytes"].tobytes(), [int(end) for end in arrays["map_ends"]]
    maps = {
        int(index): ((int(height), int(width)), content[start:end])
        for index, (height, width), start, end in zip(arrays["map_indices"], arrays["map_sizes"], [0, *ends], ends, strict=False)
    }
    confusion_SPKK, hits_SPNK, unions_SPNK, labelled_NK = (
        arrays[name].astype(np.int64) for name in ("confusion", "hits", "unions", "labelled")
    )
    names = tuple(str(name) for name in arrays["names"])
    return Record(names, confusion_SPKK, hits_SPNK, unions_SPNK, labelled_NK, maps, json.loads(str(arrays["about"])))
