"""JPEG (ITU-T T.81), GIF (89a) and WebP (RFC 9649): dimensions, and that the file has its end."""

import re
from typing import Final

from services.core.artifacts.source import ArtifactFacts, Source, image, malformed, truncated

_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END, _SCAN = 0xD9, 0xDA
_PIECE: Final = 1 << 18
# In entropy-coded data 0xFF is followed by zero, a restart marker or padding.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    facts, at, scanned = None, 2, False
    while True:
        mark, kind = source.at(at, 2)
        if mark != 0xFF:
            raise malformed(f"no marker at byte {at}")
        if kind == 0xFF:  # padding
            at += 1
            continue
        if kind == _END:
            break
        length = source.number(at + 2, 2)
        if kind in _FRAME_MARKERS:
            height, width = source.number(at + 5, 2), source.number(at + 7, 2)
            facts = image(source, "image/jpeg", width, height)
        at += 2 + length
        if kind == _SCAN:
            scanned = True
            at = _end_of_scan(source, at)
    if facts is None or not scanned:
        raise malformed("no picture before the end")
    return facts


def _end_of_scan(source: Source, at: int) -> int:
    while piece := source.peek(at, _PIECE):
        if found := _MARKER.search(piece):
            return at + found.start()
        at += max(1, len(piece) - 1)  # a marker may lie across two pieces
        if len(piece) == 1:
            break
    raise truncated("no end of the picture")


def gif(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    width, height = (int.from_bytes(source.at(at, 2), "little") for at in (6, 8))
    facts = image(source, "image/gif", width, height)
    at, pictures = 13 + _colours(source.at(10, 1)[0]), 0
    while True:
        kind = source.at(at, 1)[0]
        if kind == 0x3B:
            break
        if kind == 0x21:  # an extension: label, then blocks
            at = _after_blocks(source, at + 2)
        elif kind == 0x2C:
            pictures += 1
            at += 10 + _colours(source.at(at + 9, 1)[0])
            at = _after_blocks(source, at + 1)
        else:
            raise malformed(f"block {kind:#x} at byte {at}")
    if not pictures:
        raise malformed("no picture before the end")
    return facts


def _colours(flags: int) -> int:
    """Size of a colour table in bytes."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(source: Source, at: int) -> int:
    while length := source.at(at, 1)[0]:
        at += 1 + length
    return at + 1


def webp(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    end = 8 + int.from_bytes(source.at(4, 4), "little")
    if end > source.size:
        raise truncated(f"{end} bytes told, {source.size} there")
    at, size, pictures = 12, (0, 0), 0
    while at + 8 <= end:
        kind, length = source.at(at, 4), int.from_bytes(source.at(at + 4, 4), "little")
        if at + 8 + length > end:
            raise truncated(f"{kind!r} ends behind the file")
        if kind == b"VP8X":
            canvas = source.at(at + 12, 6)
            size = tuple(1 + int.from_bytes(canvas[i : i + 3], "little") for i in (0, 3))  # type: ignore[assignment]
        elif kind in (b"VP8 ", b"VP8L"):
            pictures += 1
            size = size if size[0] else _simple_size(source, at + 8, kind)
        elif kind == b"ANMF":
            pictures += 1
        at += 8 + length + length % 2
    if not pictures:
        raise malformed("no picture")
    return image(source, "image/webp", *size)


def _simple_size(source: Source, at: int, kind: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        head = source.at(at, 10)
        if head[3:6] != b"\x9d\x01\x2a":
            raise malformed("no VP8 key frame")
        width, height = (int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        return width, height
    head = source.at(at, 5)
    if head[0] != 0x2F:
        raise malformed("no VP8L picture")
    bits = int.from_bytes(head[1:], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
