"""PNG (W3C): every chunk with its checksum, pixels to the last row."""

import zlib
from typing import Final

from services.core.artifacts.source import ArtifactFacts, Source, image, malformed, truncated

_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PIXEL_BYTES_MAX: Final = 1 << 30
_PIECE: Final = 1 << 18
# first column, first row, step across, step down of the seven passes of an interlaced image
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def read(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    if source.at(12, 4) != b"IHDR":
        raise malformed("no header")
    width, height = source.number(16, 4), source.number(20, 4)
    facts = image(source, "image/png", width, height)
    depth, colour, _, _, interlaced = source.at(24, 5)
    if colour not in _CHANNELS or interlaced > 1:
        raise malformed("colour type or interlacing")
    expected = _pixel_bytes(width, height, depth * _CHANNELS[colour], bool(interlaced))
    if expected > _PIXEL_BYTES_MAX:
        raise malformed("too many pixels")
    pixels, at, found = zlib.decompressobj(), 8, 0
    while True:
        length, kind = source.number(at, 4), source.at(at + 4, 4)
        data = source.at(at + 8, length)
        if zlib.crc32(data, zlib.crc32(kind)) != source.number(at + 8 + length, 4):
            raise malformed(f"checksum of {kind!r}")
        if kind == b"IDAT":
            found += _inflate(pixels, data, expected - found)
        if kind == b"IEND":
            break
        at += 12 + length
    if found != expected:
        raise truncated(f"{found} of {expected} bytes of pixels")
    return facts


def _inflate(pixels: "zlib._Decompress", data: bytes, wanted: int) -> int:
    """How many bytes come out, at most one piece more than `wanted`."""
    found = 0
    try:
        while data and found <= wanted:
            found += len(pixels.decompress(data, _PIECE))
            data = pixels.unconsumed_tail
    except zlib.error as error:
        raise malformed(f"pixels: {error}") from error
    return found


def _pixel_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Every row has one filter byte before its pixels."""
    if not interlaced:
        return height * (1 + (width * bits + 7) // 8)
    total = 0
    for x, y, across, down in _PASSES:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
