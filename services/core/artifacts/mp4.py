"""MP4 and QuickTime (ISO 14496-12): boxes that add up to the file, samples that lie in it."""

from dataclasses import dataclass
from typing import Final

from services.core.artifacts.boxes import Box, boxes_in, child
from services.core.artifacts.fragments import fragment_times
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


@dataclass(slots=True)
class _Track:
    number: int = 0
    kind: bytes = b""  # vide | soun | ...
    width: int = 0
    height: int = 0
    scale: int = 0  # units of time a second
    duration: int = 0  # in these units
    samples: int = 0

    @property
    def duration_ms(self) -> int | None:
        return self.duration * 1000 // self.scale if self.scale and self.duration else None


def read(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    boxes = list(boxes_in(source, 0, source.size))
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
    inner = list(boxes_in(source, movie.body, movie.end))
    tracks = [_track(source, box) for box in inner if box.kind == b"trak"]
    fragments = [box for box in boxes if box.kind == b"moof"]
    times = fragment_times(source, movie, fragments)
    for track in tracks:
        if track.number in times:
            samples, duration = times[track.number]
            # A movie of fragments alone tells no length, or one that nobody keeps.
            track.duration = duration + (track.duration if track.samples else 0)
            track.samples += samples
    return _facts(source, brand, tracks)


def _facts(source: Source, brand: bytes, tracks: list[_Track]) -> ArtifactFacts:
    films = [track for track in tracks if track.kind == b"vide"]
    sounds = [track for track in tracks if track.kind == b"soun"]
    usable = [track for track in films or sounds if track.samples]
    if not usable:
        raise malformed("no track with samples")
    first = usable[0]
    family = "quicktime" if brand == b"qt  " else "mp4"
    if not films:
        return ArtifactFacts(
            mime="audio/mp4",
            kind="audio",
            bytes=source.size,
            duration_ms=first.duration_ms,
        )
    if not (0 < first.width <= DIMENSION_MAX and 0 < first.height <= DIMENSION_MAX):
        raise malformed(f"{first.width} x {first.height} pixels")
    return ArtifactFacts(
        mime=f"video/{family}",
        kind="video",
        bytes=source.size,
        width=first.width,
        height=first.height,
        duration_ms=max(track.duration_ms or 0 for track in usable) or None,
    )


def _track(source: Source, box: Box) -> _Track:
    track = _Track()
    if handler := child(source, box, b"mdia", b"hdlr"):
        track.kind = source.at(handler.body + 8, 4)
    if head := child(source, box, b"tkhd"):
        track.number = source.number(head.body + (20 if source.at(head.body, 1)[0] else 12), 4)
        track.width, track.height = (source.number(head.end - n, 4) >> 16 for n in (8, 4))
    if times := child(source, box, b"mdia", b"mdhd"):
        wide = source.at(times.body, 1)[0] == 1
        track.scale = source.number(times.body + (20 if wide else 12), 4)
        track.duration = source.number(times.body + (24 if wide else 16), 8 if wide else 4)
    table = child(source, box, b"mdia", b"minf", b"stbl")
    if table is not None:
        track.samples = _samples(source, table)
    return track


def _samples(source: Source, table: Box) -> int:
    """How many samples the table names; all of its chunks must begin inside the file."""
    sizes = child(source, table, b"stsz") or child(source, table, b"stz2")
    count = source.number(sizes.body + 8, 4) if sizes else 0
    for kind, width in ((b"stco", 4), (b"co64", 8)):
        places = child(source, table, kind)
        if places is None:
            continue
        raw = source.at(places.body + 8, width * source.number(places.body + 4, 4))
        offsets = (int.from_bytes(raw[i : i + width]) for i in range(0, len(raw), width))
        if max(offsets, default=0) >= source.size:
            raise truncated("a chunk begins behind the file")
    return count
