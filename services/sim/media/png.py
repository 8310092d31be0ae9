"""PNG files by hand: a palette of five colours, four bits per pixel."""

import struct
import zlib

from services.sim.media.picture import COLUMNS, ROWS, Picture


def encode(picture: Picture, width: int, height: int) -> bytes:
    """The picture scaled to `width` by `height` pixels."""
    columns = [x * COLUMNS // width for x in range(width)]
    lines = [_line(row, columns) for row in picture.cells]
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


def _line(row: tuple[int, ...], columns: list[int]) -> bytes:
    """One filter byte, then two pixels a byte."""
    nibbles = bytes(row[column] for column in columns) + b"\x00"
    pairs = zip(nibbles[0 : len(columns) : 2], nibbles[1::2], strict=False)
    return b"\x00" + bytes(high << 4 | low for high, low in pairs)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
