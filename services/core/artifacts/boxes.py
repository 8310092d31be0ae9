"""The boxes of MP4 and QuickTime files (ISO 14496-12)."""

from collections.abc import Iterator
from typing import NamedTuple

from services.core.artifacts.source import Source, malformed, truncated


class Box(NamedTuple):
    kind: bytes
    body: int  # offset of its content
    end: int


def boxes_in(source: Source, at: int, end: int) -> Iterator[Box]:
    """The boxes that fill the range exactly. Raises ArtifactInvalid."""
    while at < end:
        size, kind, head = source.number(at, 4), source.at(at + 4, 4), 8
        if size == 1:
            size, head = source.number(at + 8, 8), 16
        elif size == 0:
            size = end - at
        if size < head:
            raise malformed(f"box {kind!r} of {size} bytes")
        if at + size > end:
            raise truncated(f"box {kind!r} ends at {at + size} of {end}")
        yield Box(kind, at + head, at + size)
        at += size


def child(source: Source, box: Box, *path: bytes) -> Box | None:
    """The first box at a path below `box`. Raises ArtifactInvalid."""
    for kind in path:
        found = next((b for b in boxes_in(source, box.body, box.end) if b.kind == kind), None)
        if found is None:
            return None
        box = found
    return box
