"""Pictures of predictions: a panel of image, labels, prediction and errors for a few images, and the classes' colours.

In results/<evaluation>/pictures/, <image>.png is the panel, <image>.prediction.png the class ids, indexed with the palette, and
legend.png the legend; results/<evaluation>/grid.png is all panels on one sheet.
"""

import hashlib
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.prepared import Prepared
from pipeline.ground import files

VOID = 255  # the label of ignored pixels, as in metrics, which needs torch
COUNT = 6
GRID = "grid.png"
WIDEST = 1600  # pixels of the sheet with all panels
LOCKS = Path("runs/.locks")
LONGEST = 1024  # pixels of a panel's column; larger images are shown smaller
GAP, TITLE = 6, 22
LETTERS = 40  # of a class's name in a legend
RIGHT, WRONG, PAPER, INK = (225, 225, 225), (200, 30, 30), (255, 255, 255), (0, 0, 0)
HATCH = ((40, 40, 40), (95, 95, 95))  # two greys of diagonal stripes: void is no class's colour


def chosen(images: int) -> list[int]:
    """The indices of the images that are drawn: `COUNT` evenly spread over the split, the same on every run."""
    count = min(COUNT, images)
    return [(2 * index + 1) * images // (2 * count) for index in range(count)]


def safe_name(name: str) -> str:
    """An image's name as a file name: odd characters become _, and a hash then tells apart what they made equal."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return safe if safe == name and len(name) <= 100 else f"{safe[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def coloured(ids_HW: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Class ids as RGB (H, W, 3); what is no class is hatched."""
    H, W = ids_HW.shape
    stripes = (np.add.outer(np.arange(H), np.arange(W)) // 4) % 2
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return np.where((ids_HW >= len(palette))[..., None], np.array(HATCH, np.uint8)[stripes], table[ids_HW])


def outlined(image_HW3: NDArray[np.uint8], superpixels_HW: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The image with the superpixels' borders drawn in yellow."""
    border = np.zeros(superpixels_HW.shape, bool)
    border[:, 1:] |= superpixels_HW[:, 1:] != superpixels_HW[:, :-1]
    border[1:] |= superpixels_HW[1:] != superpixels_HW[:-1]
    return np.where(border[..., None], np.array((255, 230, 0), np.uint8), image_HW3)


def nearest(map_HW: NDArray, size: tuple[int, int]) -> NDArray:
    """A map of integers at (width, height). Maps are scaled before they are coloured, so that void's stripes are alike everywhere."""
    return np.asarray(Image.fromarray(map_HW).resize(size, Image.Resampling.NEAREST))


def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def panel(
    image: Image.Image,
    labels_HW: NDArray[np.uint8],
    prediction_HW: NDArray[np.uint8],
    palette: Sequence[Sequence[int]],
    superpixels_HW: NDArray[np.int32] | None = None,
) -> Image.Image:
    """The columns of one image side by side, each with its title; errors are red, void is hatched."""
    factor = min(LONGEST / max(image.size), max(1, 300 // min(image.size)))  # tiny images are enlarged, by whole numbers
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    labels, prediction = nearest(labels_HW, size), nearest(prediction_HW, size)
    photograph = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    columns = {"image": photograph}
    if superpixels_HW is not None:
        columns["superpixels"] = outlined(photograph, nearest(superpixels_HW, size))
    columns["labels"] = coloured(labels, palette)
    columns["prediction"] = coloured(prediction, palette)
    columns["errors"] = coloured(np.where(labels == VOID, VOID, prediction != labels).astype(np.uint8), (RIGHT, WRONG))
    canvas = Image.new("RGB", (len(columns) * (size[0] + GAP) + GAP, size[1] + TITLE + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (title, pixels) in enumerate(columns.items()):
        left = GAP + index * (size[0] + GAP)
        canvas.paste(Image.fromarray(pixels), (left, TITLE))
        draw.text((left, 3), title, fill=INK, font=font())
    return canvas


def grid(panels: Sequence[tuple[str, Image.Image]], prepared: Prepared) -> Image.Image:
    """All panels (image name, panel) below one another, each under its image's name, and the legend."""
    key = legend(prepared.classes, prepared.palette)
    rows = []
    for name, picture in panels:
        factor = min(1.0, WIDEST / picture.width)
        rows.append(
            (name, picture.resize((round(picture.width * factor), max(1, round(picture.height * factor))), Image.Resampling.LANCZOS))
        )
    width = max([key.width, *(picture.width for _, picture in rows)])
    canvas = Image.new("RGB", (width, key.height + sum(picture.height + TITLE for _, picture in rows)), PAPER)
    draw, top = ImageDraw.Draw(canvas), 0
    for name, picture in rows:
        draw.text((GAP, top + 4), drawable(name), fill=INK, font=font())
        canvas.paste(picture, (0, top + TITLE))
        top += TITLE + picture.height
    canvas.paste(key, (0, top))
    return canvas


def drawable(text: str) -> str:
    """Text as one line in the letters that Pillow's font has: accents go, other scripts become question marks."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(letter if letter.isascii() else "?" for letter in letters if not unicodedata.combining(letter))


def legend(classes: Sequence[str], palette: Sequence[Sequence[int]], columns: int = 4) -> Image.Image:
    """A field of each class's colour with its name, row by row, and void's hatching last."""
    names = [name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..." for name in map(drawable, [*classes, "void"])]
    ids = np.array([*range(len(classes)), VOID], np.uint8)
    width, height, box = 20 + 8 * max(map(len, names)) + 2 * GAP, 22, 16
    columns = min(columns, len(names))
    canvas = Image.new("RGB", (columns * width + GAP, -(-len(names) // columns) * height + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (name, id_) in enumerate(zip(names, ids, strict=True)):
        left, top = GAP + index % columns * width, GAP + index // columns * height
        canvas.paste(Image.fromarray(coloured(np.full((box, box), id_, np.uint8), palette)), (left, top))
        draw.rectangle((left, top, left + box - 1, top + box - 1), outline=INK)
        draw.text((left + box + 5, top), name, fill=INK, font=font())
    return canvas


def indexed(prediction_HW: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> Image.Image:
    """Class ids as a PNG with the palette's colours."""
    image = Image.fromarray(prediction_HW)
    image.putpalette([value for colour in palette for value in colour])
    return image


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with files.replacing(path) as file:
        image.save(file, format="PNG")


def write(folder: Path, prepared: Prepared, drawn: Sequence[tuple[str, Image.Image, NDArray[np.uint8]]]) -> None:
    """Replace `folder` by the pictures of (image name, panel, class ids); it appears whole, and one process at a time does this."""
    lock = LOCKS / f"pictures-{folder.parent.name}.lock"  # not among the results, which DVC watches
    with files.locked(lock, str(folder), wait=True):
        fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        save(legend(prepared.classes, prepared.palette), fresh / "legend.png")
        for name, side_by_side, prediction_HW in drawn:
            save(side_by_side, fresh / f"{safe_name(name)}.png")
            save(indexed(prediction_HW, prepared.palette), fresh / f"{safe_name(name)}.prediction.png")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
