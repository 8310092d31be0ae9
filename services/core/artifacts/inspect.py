"""Chooses the reader of a file by its first bytes."""

from collections.abc import Callable
from typing import BinaryIO, Final

from services.core.artifacts import frames, matroska, mp4, pictures, png, sounds
from services.core.artifacts.source import ArtifactFacts, ArtifactInvalid, Source, audio

_READERS: Final[tuple[tuple[int, bytes, Callable[[Source], ArtifactFacts]], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", png.read),
    (0, b"\xff\xd8\xff", pictures.jpeg),
    (0, b"GIF87a", pictures.gif),
    (0, b"GIF89a", pictures.gif),
    (8, b"WEBP", pictures.webp),
    (4, b"ftyp", mp4.read),
    (0, b"\x1a\x45\xdf\xa3", matroska.read),
    (8, b"WAVE", sounds.wav),
    (0, b"fLaC", sounds.flac),
    (0, b"OggS", sounds.ogg),
    (0, b"ID3", frames.mp3),
)
_HEAD: Final = 16


def inspect(data: bytes | BinaryIO, size: int) -> ArtifactFacts:
    """The facts of `size` bytes in memory or in a seekable file, which is read in place.

    Raises ArtifactInvalid."""
    source = Source(data, size)
    head = source.peek(0, _HEAD)
    if not head:
        raise ArtifactInvalid("empty", "no bytes")
    for offset, mark, read in _READERS:
        if head.startswith(mark, offset):
            return read(source)
    if head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0:
        return frames.adts(source) if head[1] & 0xF6 == 0xF0 else frames.mp3(source)
    raise ArtifactInvalid("unknown_type", f"begins with {head[:8]!r}")


def inspect_pcm(size: int, rate_hz: int = 24_000) -> ArtifactFacts:
    """Raw 16-bit mono samples, which have no mark of their own. Raises ArtifactInvalid."""
    if size == 0:
        raise ArtifactInvalid("empty", "no bytes")
    if size % 2:
        raise ArtifactInvalid("truncated", "half a sample at the end")
    return audio(Source(b"", size), "audio/pcm", size // 2, rate_hz)
