"""The bytes under inspection, and what comes of it."""

from typing import BinaryIO, Final

import msgspec

DIMENSION_MAX: Final = 65_535  # pixels


class ArtifactFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is image, video or audio. `duration_ms` is None where the file does not tell."""

    mime: str
    kind: str
    bytes: int
    width: int | None = None
    height: int | None = None
    duration_ms: int | None = None


class ArtifactInvalid(Exception):
    """Not usable: `reason` is empty, unknown_type, truncated or malformed."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def malformed(detail: str) -> ArtifactInvalid:
    return ArtifactInvalid("malformed", detail)


def truncated(detail: str) -> ArtifactInvalid:
    return ArtifactInvalid("truncated", detail)


class Source:
    """Bytes in memory, or a seekable file that is read in place."""

    def __init__(self, data: bytes | BinaryIO, size: int) -> None:
        self._memory = memoryview(data) if isinstance(data, bytes) else None
        self._file = None if isinstance(data, bytes) else data
        self.size = size

    def peek(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes; fewer at the end."""
        count = max(0, min(count, self.size - offset))
        if self._memory is not None:
            return bytes(self._memory[offset : offset + count])
        assert self._file is not None
        self._file.seek(offset)
        return self._file.read(count)

    def at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises ArtifactInvalid (truncated)."""
        found = self.peek(offset, count)
        if len(found) < count:
            raise truncated(f"ends at byte {self.size}, {offset + count} needed")
        return found

    def number(self, offset: int, count: int) -> int:
        """A big-endian unsigned integer. Raises ArtifactInvalid (truncated)."""
        return int.from_bytes(self.at(offset, count))


def image(source: Source, mime: str, width: int, height: int) -> ArtifactFacts:
    """The facts of an image. Raises ArtifactInvalid when it has no area."""
    if not (0 < width <= DIMENSION_MAX and 0 < height <= DIMENSION_MAX):
        raise malformed(f"{width} x {height} pixels")
    return ArtifactFacts(mime=mime, kind="image", bytes=source.size, width=width, height=height)


def audio(source: Source, mime: str, samples: int, rate_hz: int) -> ArtifactFacts:
    """The facts of a sound. Raises ArtifactInvalid when it lasts no time."""
    if samples <= 0 or rate_hz <= 0:
        raise malformed("no samples")
    return ArtifactFacts(
        mime=mime, kind="audio", bytes=source.size, duration_ms=samples * 1000 // rate_hz
    )
