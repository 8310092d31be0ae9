"""WebM and Matroska (RFC 9559): elements that end inside the file, at least one cluster."""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from services.core.artifacts.source import (
    DIMENSION_MAX,
    ArtifactFacts,
    Source,
    malformed,
    truncated,
)

_SEGMENT, _INFO, _TRACKS, _CLUSTER = 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
_DOCTYPE, _SCALE, _DURATION = 0x4282, 0x2AD7B1, 0x4489
_ENTRY, _KIND, _VIDEO, _WIDTH, _HEIGHT = 0xAE, 0x83, 0xE0, 0xB0, 0xBA
_TIME, _SIMPLE_BLOCK, _GROUP, _BLOCK = 0xE7, 0xA3, 0xA0, 0xA1
_FILM, _SOUND = 1, 2
_SCALE_NS: Final = 1_000_000  # nanoseconds of a unit of time, unless told
_DURATION_MAX: Final = 1e15
_CONTAINERS: Final = (_SEGMENT, _CLUSTER)  # may be of unknown size


class _Element(NamedTuple):
    number: int
    body: int
    end: int


def read(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    head, *rest = _elements(source, 0, source.size)
    doctype = _child(source, head, _DOCTYPE)
    name = source.at(doctype.body, doctype.end - doctype.body) if doctype else b""
    segment = next((e for e in rest if e.number == _SEGMENT), None)
    if segment is None:
        raise truncated("no segment")
    info = tracks = None
    clusters: list[_Element] = []
    for element in _elements(source, segment.body, segment.end):
        if element.number == _CLUSTER:
            clusters.append(element)
        info = element if element.number == _INFO else info
        tracks = element if element.number == _TRACKS else tracks
    if not clusters:
        raise truncated("no cluster")
    if tracks is None:
        raise malformed("no tracks")
    scale_ns = (_unsigned(source, _child(source, info, _SCALE)) if info else 0) or _SCALE_NS
    told = _told_duration(source, info) if info else None
    units = told if told is not None else _last_time(source, clusters[-1])
    webm = name.rstrip(b"\0") == b"webm"
    return _facts(source, webm, tracks, int(units * scale_ns / 1_000_000))


def _facts(source: Source, webm: bool, tracks: _Element, duration_ms: int) -> ArtifactFacts:
    kinds, width, height = set(), 0, 0
    for entry in _elements(source, tracks.body, tracks.end):
        if entry.number != _ENTRY:
            continue
        kinds.add(_unsigned(source, _child(source, entry, _KIND)))
        if picture := _child(source, entry, _VIDEO):
            width = width or _unsigned(source, _child(source, picture, _WIDTH))
            height = height or _unsigned(source, _child(source, picture, _HEIGHT))
    if not kinds & {_FILM, _SOUND}:
        raise malformed("neither film nor sound")
    kind = "video" if _FILM in kinds else "audio"
    if kind == "video" and not (0 < width <= DIMENSION_MAX and 0 < height <= DIMENSION_MAX):
        raise malformed(f"{width} x {height} pixels")
    return ArtifactFacts(
        mime=f"{kind}/{'webm' if webm else 'x-matroska'}",
        kind=kind,
        bytes=source.size,
        width=width or None,
        height=height or None,
        duration_ms=duration_ms or None,
    )


def _told_duration(source: Source, info: _Element) -> float | None:
    length = _child(source, info, _DURATION)
    if length is None or length.end - length.body not in (4, 8):
        return None
    raw = source.at(length.body, length.end - length.body)
    (value,) = struct.unpack(">f" if len(raw) == 4 else ">d", raw)
    return value if 0 <= value < _DURATION_MAX else None


def _last_time(source: Source, cluster: _Element) -> int:
    """When the last block begins, for a film that was written as it was made."""
    begins = latest = 0
    for element in _elements(source, cluster.body, cluster.end):
        block: _Element | None = element
        if element.number == _TIME:
            begins = _unsigned(source, element)
        elif element.number == _GROUP:
            block = _child(source, element, _BLOCK)
        if block is not None and block.number in (_BLOCK, _SIMPLE_BLOCK):
            _, width = _variable(source, block.body, keep_marker=False)
            latest = max(latest, source.number(block.body + width, 2))
    return begins + latest


def _elements(source: Source, at: int, end: int) -> Iterator[_Element]:
    while at < end:
        number, head = _variable(source, at, keep_marker=True)
        size, width = _variable(source, at + head, keep_marker=False)
        body = at + head + width
        unknown = size == (1 << 7 * width) - 1
        if unknown and number not in _CONTAINERS:
            raise malformed(f"element {number:#x} of unknown size")
        # A cluster of unknown size ends where its parent does: what follows are its blocks or
        # further clusters, told apart by nobody here.
        stop = end if unknown else body + size
        if stop > end:
            raise truncated(f"element {number:#x} ends at {stop} of {end}")
        yield _Element(number, body, stop)
        at = stop


def _variable(source: Source, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """(value, length in bytes) of a variable-size integer."""
    first = source.at(at, 1)[0]
    width = 9 - first.bit_length()
    if width > 8:
        raise malformed(f"no element at byte {at}")
    value = source.number(at, width)
    return (value if keep_marker else value - (1 << 7 * width), width)


def _child(source: Source, parent: _Element, number: int) -> _Element | None:
    return next((e for e in _elements(source, parent.body, parent.end) if e.number == number), None)


def _unsigned(source: Source, element: _Element | None) -> int:
    return source.number(element.body, element.end - element.body) if element else 0
