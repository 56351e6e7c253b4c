"""Image files of any kind as upright pixels, and what of a file decoding turns into other numbers."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.ground.errors import UserError

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
RESCALED = "rescaled"  # in an image's `info`: what its file has that became other numbers when it was decoded


def rgb(path: Path) -> Image.Image:
    """Any image file as an upright 8-bit RGB image, fully decoded; the UserError is the bare reason why it cannot be."""
    image = upright(path)
    if image.mode in SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        values_HW = np.asarray(image)
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise UserError("its 32-bit values are beyond 16 bits: save it as an 8-bit or 16-bit image")
        return Image.fromarray((values_HW >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError("its pixels are floating-point numbers: save it as an 8-bit or 16-bit image")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # a palette with transparency goes through RGBA, or Pillow warns
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise UserError(f"{error}: save it as RGB") from None


def upright(path: Path) -> Image.Image:
    """A file's image in its own mode, fully decoded and turned as its EXIF orientation says; the UserError is the bare reason."""
    try:
        if not path.stat().st_size:
            raise UserError("is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                stored = rescaled(image)
                image.load()
                turned = ImageOps.exif_transpose(image)
                turned.info[RESCALED] = stored
                return turned
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, too many to be decoded safely") from None
    except FileNotFoundError:
        raise UserError("does not exist") from None
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError("does not decode (it is no image, or one of a kind that is not known)") from None
    except Exception as error:  # decoders meet damage with exceptions of every kind (struct.error, IndexError ...)
        raise UserError(f"does not decode ({' '.join(str(error).split()) or type(error).__name__})") from None


def rescaled(image: Image.Image) -> str | None:
    """What an opened file has that decoding turns into other numbers: shades for people, but no more the ids of a mask.

    Pillow scales 2 and 4 bits to 8, keeps the upper 8 of 16 bits where there are several channels, and misreads some TIFFs: a UserError.
    """
    arguments = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", ())]
    raw = {str(entry[0]) for entry in arguments if entry}
    several = len(image.getbands()) > 1
    if several and any(";16" in mode for mode in raw):
        return "16 bits in each channel"
    if several and image.format == "TIFF" and max(getattr(image, "tag_v2", {}).get(258, (8,))) > 8:  # 258: bits per sample
        raise UserError("is a TIFF whose channels of 16 bits lie one behind the other, which is not read: save it as a PNG")
    if image.mode == "L" and raw & {"L;2", "L;4"}:
        return f"{min(raw)[-1]} bits in each pixel"
    if image.format == "PPM" and len(arguments[0]) > 1 and image.mode in ("L", "RGB"):
        return f"values up to {arguments[0][1]} instead of 255"
    return None
