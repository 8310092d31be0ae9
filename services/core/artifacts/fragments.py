"""How long the fragments of an MP4 file last: a film for streaming has no length of its own."""

from collections.abc import Iterable
from typing import Final

from services.core.artifacts.boxes import Box, boxes_in, child
from services.core.artifacts.source import Source

# Flags of a track fragment's header: which optional fields come before the default duration.
_BASE_OFFSET, _DESCRIPTION, _DEFAULT_DURATION = 0x1, 0x2, 0x8
# Flags of a run of samples: fields before the samples, fields of each sample.
_RUN_HEADS: Final = (0x1, 0x4)
_DURATION: Final = 0x100
_SAMPLE_FIELDS: Final = (0x100, 0x200, 0x400, 0x800)


def fragment_times(
    source: Source, movie: Box, fragments: Iterable[Box]
) -> dict[int, tuple[int, int]]:
    """Samples and their duration, in the track's units of time, by number of track.

    Raises ArtifactInvalid."""
    defaults = {}
    if extends := child(source, movie, b"mvex"):
        for box in boxes_in(source, extends.body, extends.end):
            if box.kind == b"trex":
                defaults[source.number(box.body + 4, 4)] = source.number(box.body + 12, 4)
    found: dict[int, tuple[int, int]] = {}
    for fragment in fragments:
        for track in boxes_in(source, fragment.body, fragment.end):
            head = child(source, track, b"tfhd") if track.kind == b"traf" else None
            if head is None:
                continue
            number = source.number(head.body + 4, 4)
            each = _default_duration(source, head, defaults.get(number, 0))
            for box in boxes_in(source, track.body, track.end):
                if box.kind == b"trun":
                    samples, duration = _run(source, box, each)
                    before = found.get(number, (0, 0))
                    found[number] = before[0] + samples, before[1] + duration
    return found


def _default_duration(source: Source, head: Box, default: int) -> int:
    flags = source.number(head.body + 1, 3)
    if not flags & _DEFAULT_DURATION:
        return default
    skipped = 8 * bool(flags & _BASE_OFFSET) + 4 * bool(flags & _DESCRIPTION)
    return source.number(head.body + 8 + skipped, 4)


def _run(source: Source, box: Box, each: int) -> tuple[int, int]:
    flags, count = source.number(box.body + 1, 3), source.number(box.body + 4, 4)
    if not flags & _DURATION:
        return count, count * each
    at = box.body + 8 + 4 * sum(bool(flags & flag) for flag in _RUN_HEADS)
    width = 4 * sum(bool(flags & flag) for flag in _SAMPLE_FIELDS)
    raw = source.at(at, count * width)
    return count, sum(int.from_bytes(raw[i : i + 4]) for i in range(0, len(raw), width))
