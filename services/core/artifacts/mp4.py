"""MP4 and QuickTime (ISO 14496-12): boxes that add up to the file, samples that lie in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.core.artifacts.source import (
    DIMENSION_MAX,
    ArtifactFacts,
    ArtifactInvalid,
    Source,
    malformed,
    truncated,
)

_MOVIE_MAX: Final = 64 * 1024 * 1024  # bytes of the movie box
_IMAGE_BRANDS: Final = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


class _Box(NamedTuple):
    kind: bytes
    body: int  # offset of its content
    end: int


@dataclass(slots=True)
class _Track:
    kind: bytes = b""  # vide | soun | ...
    width: int = 0
    height: int = 0
    duration_ms: int = 0
    samples: int = 0


def read(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    boxes = list(_boxes(source, 0, source.size))
    brand = source.at(boxes[0].body, 4)
    if brand in _IMAGE_BRANDS:
        raise ArtifactInvalid("unknown_type", f"brand {brand!r}")
    movie = next((box for box in boxes if box.kind == b"moov"), None)
    if movie is None:
        raise truncated("no movie box")
    if not any(box.kind == b"mdat" and box.end > box.body for box in boxes):
        raise truncated("no media data")
    if movie.end - movie.body > _MOVIE_MAX:
        raise malformed("the movie box is too large")
    fragmented = any(box.kind == b"moof" for box in boxes)
    inner = list(_boxes(source, movie.body, movie.end))
    tracks = [_track(source, box) for box in inner if box.kind == b"trak"]
    return _facts(source, brand, tracks, fragmented)


def _facts(source: Source, brand: bytes, tracks: list[_Track], fragmented: bool) -> ArtifactFacts:
    films = [track for track in tracks if track.kind == b"vide"]
    sounds = [track for track in tracks if track.kind == b"soun"]
    usable = [track for track in films or sounds if track.samples or fragmented]
    if not usable:
        raise malformed("no track with samples")
    first = usable[0]
    family = "quicktime" if brand == b"qt  " else "mp4"
    if not films:
        return ArtifactFacts(
            mime="audio/mp4",
            kind="audio",
            bytes=source.size,
            duration_ms=first.duration_ms or None,
        )
    if not (0 < first.width <= DIMENSION_MAX and 0 < first.height <= DIMENSION_MAX):
        raise malformed(f"{first.width} x {first.height} pixels")
    return ArtifactFacts(
        mime=f"video/{family}",
        kind="video",
        bytes=source.size,
        width=first.width,
        height=first.height,
        duration_ms=max(track.duration_ms for track in usable) or None,
    )


def _boxes(source: Source, at: int, end: int) -> Iterator[_Box]:
    """The boxes that fill the range exactly."""
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
        yield _Box(kind, at + head, at + size)
        at += size


def _child(source: Source, box: _Box, *path: bytes) -> _Box | None:
    for kind in path:
        found = next((b for b in _boxes(source, box.body, box.end) if b.kind == kind), None)
        if found is None:
            return None
        box = found
    return box


def _track(source: Source, box: _Box) -> _Track:
    track = _Track()
    if handler := _child(source, box, b"mdia", b"hdlr"):
        track.kind = source.at(handler.body + 8, 4)
    if head := _child(source, box, b"tkhd"):
        track.width, track.height = (source.number(head.end - n, 4) >> 16 for n in (8, 4))
    if times := _child(source, box, b"mdia", b"mdhd"):
        wide = source.at(times.body, 1)[0] == 1
        scale = source.number(times.body + (20 if wide else 12), 4)
        length = source.number(times.body + (24 if wide else 16), 8 if wide else 4)
        track.duration_ms = length * 1000 // scale if scale else 0
    table = _child(source, box, b"mdia", b"minf", b"stbl")
    if table is not None:
        track.samples = _samples(source, table)
    return track


def _samples(source: Source, table: _Box) -> int:
    """How many samples the table names; all of its chunks must begin inside the file."""
    sizes = _child(source, table, b"stsz") or _child(source, table, b"stz2")
    count = source.number(sizes.body + 8, 4) if sizes else 0
    for kind, width in ((b"stco", 4), (b"co64", 8)):
        places = _child(source, table, kind)
        if places is None:
            continue
        raw = source.at(places.body + 8, width * source.number(places.body + 4, 4))
        offsets = (int.from_bytes(raw[i : i + width]) for i in range(0, len(raw), width))
        if max(offsets, default=0) >= source.size:
            raise truncated("a chunk begins behind the file")
    return count
