"""WAV, FLAC (RFC 9639) and Ogg (RFC 3533): lengths that agree with the bytes that are there."""

import re
from typing import Final

from services.core.artifacts.source import ArtifactFacts, Source, audio, malformed, truncated

_UNTOLD: Final = (0, 0xFFFFFFFF)  # lengths in the header of a WAV that was streamed
_LAST_FRAME: Final = 1 << 17  # bytes at the end of a FLAC in which its last frame begins
_TRIED: Final = 32  # places in it that look like a beginning
_LAST_PAGE: Final = 4


def wav(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    if source.at(0, 4) not in (b"RIFF", b"RF64"):
        raise malformed("no RIFF header")
    at, bytes_per_s = 12, 0
    while at + 8 <= source.size:
        kind, length = source.at(at, 4), _little(source, at + 4)
        at += 8
        if kind == b"fmt ":
            bytes_per_s = _little(source, at + 8)
        elif kind == b"data":
            here = source.size - at
            if length in _UNTOLD:
                length = here
            if length > here:
                raise truncated(f"{here} of {length} bytes of sound")
            return audio(source, "audio/wav", length, bytes_per_s)
        at += length + length % 2
    raise truncated("no sound")


def _little(source: Source, at: int) -> int:
    return int.from_bytes(source.at(at, 4), "little")


def flac(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    at, rate_hz, samples, block, last = 4, 0, 0, 0, False
    while not last:
        head, length = source.at(at, 1)[0], source.number(at + 1, 3)
        last, at = head >= 0x80, at + 4
        if head & 0x7F == 0:
            block, packed = source.number(at + 2, 2), source.number(at + 10, 8)
            rate_hz, samples = packed >> 44, packed & ((1 << 36) - 1)
        at += length
    if source.number(at, 2) & 0xFFFE != 0xFFF8:
        raise malformed("no frame behind the metadata")
    tail_at = max(at, source.size - _LAST_FRAME)
    tail = source.at(tail_at, source.size - tail_at)
    # The last frame is whole when the checksum at its end fits one of the places where it may
    # have begun.
    begins = [found.start() for found in re.finditer(rb"\xff[\xf8\xf9]", tail)]
    frame = next((tail[at:] for at in begins[:-_TRIED:-1] if _crc16(tail[at:]) == 0), None)
    if frame is None:
        raise truncated("the last frame is not whole")
    number = _coded_number(frame[4:11])
    reached = number + block if frame[1] & 1 else (number + 1) * block
    if reached < samples:
        raise truncated(f"{reached} of {samples} samples")
    return audio(source, "audio/flac", samples or reached, rate_hz)  # 0: made as it was told


def _coded_number(raw: bytes) -> int:
    """The number of a frame or of its first sample, coded as UTF-8 codes a character."""
    width = 8 - (raw[0] ^ 0xFF).bit_length()
    value = raw[0] & (0x7F >> width)
    for byte in raw[1 : max(1, width)]:
        value = value << 6 | byte & 0x3F
    return value


def _crc16_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = value << 1 ^ (0x8005 if value & 0x8000 else 0)
        table.append(value & 0xFFFF)
    return tuple(table)


_CRC16: Final = _crc16_table()


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value


def ogg(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    at, rate_hz, skipped, position, ended = 0, 0, 0, 0, False
    while at < source.size:
        if source.at(at, 4) != b"OggS":
            raise malformed(f"no page at byte {at}")
        head = source.at(at, 27)
        granule = int.from_bytes(head[6:14], "little")
        sizes = source.at(at + 27, head[26])
        body = at + 27 + head[26]
        if body + sum(sizes) > source.size:
            raise truncated("the last page is not whole")
        if at == 0:
            rate_hz, skipped = _stream(source.at(body, sum(sizes)))
        if granule != (1 << 64) - 1:
            position = max(position, granule)
        ended = bool(head[5] & _LAST_PAGE)
        at = body + sum(sizes)
    if not ended:
        raise truncated("no last page")
    return audio(source, "audio/ogg", position - skipped, rate_hz)


def _stream(packet: bytes) -> tuple[int, int]:
    """(samples a second, samples to skip) from the first packet."""
    if packet.startswith(b"OpusHead") and len(packet) >= 12:
        return 48_000, int.from_bytes(packet[10:12], "little")
    if packet.startswith(b"\x01vorbis") and len(packet) >= 16:
        return int.from_bytes(packet[12:16], "little"), 0
    raise malformed("neither Opus nor Vorbis")
