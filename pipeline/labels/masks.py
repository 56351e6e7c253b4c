"""Masks of the user's own: the ids or colours that data.classes gives the classes, and those that a mask's pixels have."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.images import RESCALED
from pipeline.ground.errors import UserError

Colour = tuple[int, int, int]
IDS = 65536  # an id in a mask is smaller


def unnamed(name: Any) -> str:
    """Why a class cannot be called `name`, and what to do."""
    if isinstance(name, bool):
        words = "yes, on and true" if name else "no, off and false"
        return f'{name} is no name: YAML reads {words} as the boolean {name}: write it in quotes, as in "{"yes" if name else "no"}"'
    return f'{name!r} is no name: write it in quotes, as in "{"name" if name in (None, "") else name}"'


def codes(named: Mapping[Any, Any]) -> dict[str, int | Colour]:
    """Each class's id, or each class's colour."""
    coded = {name: code(f"classes.{name}", value) for name, value in named.items()}
    if len({isinstance(value, int) for value in coded.values()}) > 1:
        raise UserError("data.classes: give every class an id, or every class a colour, not both")
    seen: dict[int | Colour, str] = {}
    for name, value in coded.items():
        if value in seen:
            raise UserError(f"data.classes: {seen[value]} and {name} are both {shown(value)}")
        seen[value] = name
    return coded


def code(key: str, value: Any) -> int | Colour:
    """An id from 0 to 65535, or a colour from [r, g, b] or "#rrggbb"."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
        return value
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            red, green, blue = bytes.fromhex(value[1:])
            return red, green, blue
        except ValueError:
            pass
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
        return value[0], value[1], value[2]
    hint = ' (a colour needs quotes: "#rrggbb")' if value is None else ""
    raise UserError(f'data.{key} must be an id (0 to 65535) or a colour ([r, g, b] or "#rrggbb"), not {value!r}{hint}')


def packed(value: int | Colour) -> int:
    """A colour as one number; an id as it is."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def shown(value: int | Colour) -> str:
    """An id or colour as a user writes it."""
    return f"id {value}" if isinstance(value, int) else f"colour #{packed(value):06x}"


def ids_of(mask: Image.Image) -> np.ndarray:
    """The numbers that a mask stores, int64 [height, width]: grey values, or palette indices."""
    refuse_rescaled(mask)
    values = np.asarray(mask)
    if mask.mode in ("L", "P", "1", "I") or mask.mode.startswith("I;16"):
        return values.astype(np.int64)
    if mask.mode in ("LA", "PA"):
        return values[..., 0].astype(np.int64)
    if mask.mode in ("RGB", "RGBA"):
        if (values[..., :1] != values[..., 1:3]).any():
            raise UserError(
                "is a coloured mask, without ids: in a folder of one's own, classes: {road: [128, 64, 128]} gives a class its colour"
            )
        return values[..., 0].astype(np.int64)
    raise UserError(f"is a mask in mode {mask.mode}, which carries no ids: save it as a grey or indexed PNG")


def colours_of(mask: Image.Image) -> np.ndarray:
    """A mask's colours, packed into int64 [height, width]."""
    refuse_rescaled(mask)
    if mask.mode not in ("RGB", "RGBA", "P", "PA", "L", "LA", "1"):
        raise UserError(f"is a mask in mode {mask.mode}, which carries no colours of 8 bits: save it as an RGB PNG")
    rgb_HW3 = np.asarray(mask.convert("RGBA"))[..., :3].astype(np.int64)  # through RGBA: Pillow warns about transparency otherwise
    return rgb_HW3[..., 0] << 16 | rgb_HW3[..., 1] << 8 | rgb_HW3[..., 2]


def refuse_rescaled(mask: Image.Image) -> None:
    """Refuse a mask whose numbers are no more those of its file."""
    if stored := mask.info.get(RESCALED):
        raise UserError(f"is a mask with {stored}, which decoding turns into other numbers: save it as a PNG with 8 bits")


def looked_up(ids_HW: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """The uint8 map in which every id is replaced by what `table` says; a UserError names the first id that it does not know."""
    found_HW, strange_HW = replaced(ids_HW, table)
    if strange_HW.any():
        row, column = np.argwhere(strange_HW)[0]
        raise UserError(f"has the id {ids_HW[row, column]} at row {row}, column {column}, which is none of the dataset's")
    return found_HW


def replaced(codes_HW: np.ndarray, table: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The uint8 map in which every id or packed colour is replaced by what `table` says, and where it says nothing."""
    low, high = int(codes_HW.min()), int(codes_HW.max())
    if low >= 0 and high < IDS:  # looked up at once, several times as fast as searched for
        places = np.full(high + 1, -1, np.int16)
        for key, place in table.items():
            if 0 <= key <= high:
                places[key] = place
        found_HW = places[codes_HW]
        return found_HW.astype(np.uint8), found_HW < 0
    known = np.array(sorted(table), np.int64)
    places_HW = np.minimum(np.searchsorted(known, codes_HW), len(known) - 1)
    return np.array([table[int(key)] for key in known], np.uint8)[places_HW], known[places_HW] != codes_HW


def matlab_ids(path: Path, variable: str, field: str | None = None) -> np.ndarray:
    """The ids int64 [height, width] in a variable of a MATLAB file, or in a field of it that is a structure."""
    from scipy.io import loadmat, whosmat

    try:
        with path.open("rb") as file:
            for name, shape, _ in whosmat(file):
                if name == variable:
                    refuse_large(math.prod(shape))
            file.seek(0)
            found = loadmat(file, variable_names=[variable])[variable]
        values = np.asarray(found if field is None else found[field][0, 0])
        refuse_large(values.size)
        return values.astype(np.int64)
    except FileNotFoundError:
        raise UserError("does not exist") from None
    except UserError:
        raise
    except Exception as error:  # scipy meets damage with exceptions of every kind
        what = variable if field is None else f"{variable}.{field}"
        raise UserError(f"does not decode as a MATLAB file with {what} ({' '.join(str(error).split()) or type(error).__name__})") from None


def refuse_large(pixels: int) -> None:
    """Refuse an array with more pixels than an image may have: a small file of zeros fills the memory."""
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"claims {pixels:,} pixels, more than the {Image.MAX_IMAGE_PIXELS:,} that can be decoded safely")
