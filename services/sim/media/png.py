"""PNG files by hand: a palette of five colours, four bits per pixel."""

import struct
import zlib
from itertools import pairwise

from services.sim.media.picture import COLUMNS, ROWS, Picture


def encode(picture: Picture, width: int, height: int) -> bytes:
    """The picture scaled to `width` by `height` pixels."""
    edges = [-(-column * width // COLUMNS) for column in range(COLUMNS + 1)]
    spans = [end - begin for begin, end in pairwise(edges)]
    lines = [_line(row, spans) for row in picture.cells]
    pixels = b"".join(lines[y * ROWS // height] for y in range(height))
    palette = bytes(part for colour in picture.palette for part in colour)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette),
            _chunk(b"IDAT", zlib.compress(pixels, 6)),
            _chunk(b"IEND", b""),
        )
    )


def _line(row: tuple[int, ...], spans: list[int]) -> bytes:
    """One filter byte, then two pixels a byte: as hexadecimal digits one pixel each."""
    digits = "".join(str(index) * span for index, span in zip(row, spans, strict=True))
    return b"\x00" + bytes.fromhex(digits + "0" * (len(digits) % 2))


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
