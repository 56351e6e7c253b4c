"""Generated datasets whose files are as large, and take as long to decode, as a real dataset's."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = [f"class {number}" for number in range(19)]
BASES = 4  # pictures that are really drawn: the others are these with a number behind their end, which decoders pass over


@dataclass(frozen=True)
class Like:
    """A dataset by its pictures. Sizes are (height, width); `crop`, `ratio_base` and `quality` (JPEG; None: PNG) are the usual ones."""

    name: str
    files: int  # pairs of the real one
    height: int
    width: int
    crop: tuple[int, int]
    ratio_base: tuple[int, int] | None
    quality: int | None


CITYSCAPES = Like("Cityscapes", 3_475, 1024, 2048, (512, 1024), None, None)
ADE20K = Like("ADE20K", 22_210, 512, 683, (512, 512), (2048, 512), 75)


def generate(like: Like, count: int, folder: Path) -> int:
    """Write `count` pairs to `folder`/images and `folder`/masks; returns their bytes."""
    suffix, total = ".png" if like.quality is None else ".jpg", 0
    bases = [drawn(like, number) for number in range(min(count, BASES))]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        image, mask = bases[number % BASES]
        total += (folder / "images" / f"{number:05}{suffix}").write_bytes(image + b"%d" % number)
        total += (folder / "masks" / f"{number:05}.png").write_bytes(mask + b"%d" % number)
    return total


def drawn(like: Like, number: int) -> tuple[bytes, bytes]:
    """An image file and its mask: regions with shading and a camera's noise."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (like.height // 32, like.width // 32, 3), dtype=np.uint8)
    shaded = np.asarray(Image.fromarray(coarse).resize((like.width, like.height), Image.Resampling.BICUBIC))
    noisy = np.clip(shaded + rng.normal(0, 2, (like.height, like.width, 1)), 0, 255).astype(np.uint8)
    ids = rng.integers(0, len(CLASSES), (like.height // 32, like.width // 32), dtype=np.uint8)
    mask = Image.fromarray(ids).resize((like.width, like.height), Image.Resampling.NEAREST)
    image = encoded(noisy, "PNG") if like.quality is None else encoded(noisy, "JPEG", quality=like.quality)
    return image, encoded(np.asarray(mask), "PNG")


def encoded(pixels: np.ndarray, form: str, **options: int) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def title(like: Like) -> str:
    """A dataset with its pictures' size, for a table."""
    return f"like {like.name}, {like.width} x {like.height} {'PNG' if like.quality is None else 'JPEG'}"
