"""Files that Pillow reads but does not write, made by hand: their pixels are known without any decoder."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types: grey, RGB, palette, grey and alpha, RGBA
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = CHANNELS
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # Adam7: top, left, steps


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, bits: int, colour: int, *, interlaced: bool = False, palette: np.ndarray | None = None, alpha: bytes = b"",
        text: bytes = b"") -> bytes:  # fmt: skip
    """A PNG of [H, W] or [H, W, channels] values; `alpha`: the body of its tRNS chunk; `text`: of a zTXt chunk."""
    height, width = values.shape[:2]
    samples = values.reshape(height, width, CHANNELS[colour])
    seen = [samples[top::down, left::right] for top, left, down, right in PASSES] if interlaced else [samples]
    body = b"".join(b"\0" + packed(row, bits) for part in seen if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header)]
    chunks += [(b"PLTE", palette.astype(np.uint8).tobytes())] if palette is not None else []
    chunks += [(b"tRNS", alpha)] if alpha else []
    chunks += [(b"zTXt", text)] if text else []
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in (*chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")))


def packed(row: np.ndarray, bits: int) -> bytes:
    """A row's samples as a PNG has them."""
    if bits >= 8:
        return row.astype(f">u{bits // 8}").tobytes()
    single = row.reshape(-1, 1).astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8) & 1
    return np.packbits(single).tobytes()


def tiff(channels: np.ndarray) -> bytes:
    """An uncompressed TIFF of [3, H, W] 16-bit values whose channels lie one behind the other."""
    _, height, width = channels.shape
    size, end = 2 * height * width, 8 + 2 + 10 * 12 + 4
    bits, offsets, sizes = end, end + 6, end + 18
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, offsets)]
    entries += [(277, 3, 1, 3), (278, 3, 1, height), (279, 4, 3, sizes), (284, 3, 1, 2)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    first = end + 30
    tables = (
        struct.pack("<3H", 16, 16, 16) + struct.pack("<3I", *(first + size * place for place in range(3))) + struct.pack("<3I", *[size] * 3)
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4) + tables + channels.astype("<u2").tobytes()


def claiming(kind: str, side: int) -> bytes:
    """The beginning of an image of side x side pixels, and nothing of them."""
    if kind == "png":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    if kind == "bmp":
        return struct.pack("<2sIII", b"BM", 54, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    if kind == "ppm":
        return f"P6 {side} {side} 255\n".encode()
    assert kind == "tif"
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)


def overlapping_zip(path: Path, names: int) -> int:
    """A zip whose directory names one compressed entry of 4 GB, of zeros, many times; returns the bytes that it claims to hold."""
    inner, claimed = io.BytesIO(), 2**32 - 2
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as container:
        container.writestr("0", bytes(1 << 20))
    content = bytearray(inner.getvalue())
    start = content.index(b"PK\x01\x02")
    record = content[start : content.index(b"PK\x05\x06")]
    struct.pack_into("<I", record, 24, claimed)
    record = record[:46]
    directory = b""
    for number in range(names):
        name = f"{number:06}".encode()
        struct.pack_into("<H", record, 28, len(name))
        directory += bytes(record) + name
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, names, names, len(directory), start, 0)
    path.write_bytes(bytes(content[:start]) + directory + end)
    return claimed * names
