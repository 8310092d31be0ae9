"""Sounds that are nothing but frames: MP3 (ISO 11172-3) and AAC in ADTS (ISO 13818-7)."""

from typing import Final

from services.core.artifacts.source import ArtifactFacts, Source, audio, malformed, truncated

_KBITS: Final = {  # by MPEG-1 or later, layer III
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ: Final = (44_100, 48_000, 32_000)  # MPEG-1; halved and quartered by later ones
_ADTS_RATES_HZ: Final = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)
_TAG: Final = 128  # bytes of an ID3v1 tag
_INFO_FRAMES: Final = 1  # flag: the number of frames is told


def mp3(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    at = _after_id3(source)
    end = source.size - (_TAG if source.peek(source.size - _TAG, 3) == b"TAG" else 0)
    frames = samples = rate_hz = told = 0
    while at < end:
        length, per_frame, rate_hz = _frame(source, at)
        if at + length > end:
            raise truncated("the last frame is not whole")
        if frames == 0:
            told = _told_frames(source.at(at, length))
        frames, samples, at = frames + 1, samples + per_frame, at + length
    if told:
        frames, samples = frames - 1, samples - samples // frames  # the first one only tells
        if frames < told:
            raise truncated(f"{frames} of {told} frames")
    return audio(source, "audio/mpeg", samples, rate_hz)


def _after_id3(source: Source) -> int:
    if source.peek(0, 3) != b"ID3":
        return 0
    size = 0
    for byte in source.at(6, 4):
        size = size << 7 | byte & 0x7F
    footer = 10 if source.at(5, 1)[0] & 0x10 else 0
    at = 10 + size + footer
    if at >= source.size:
        raise truncated("nothing behind the tag")
    return at


def _frame(source: Source, at: int) -> tuple[int, int, int]:
    """(bytes, samples, samples a second) of a frame."""
    head = source.number(at, 4)
    version, layer = head >> 19 & 3, head >> 17 & 3
    kbits, rate = head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        raise malformed(f"no frame at byte {at}")
    first = version == 3
    rate_hz = _RATES_HZ[rate] >> (0 if first else 1 if version == 2 else 2)
    samples = 1152 if first else 576
    return samples // 8 * _KBITS[first][kbits] * 1000 // rate_hz + (head >> 9 & 1), samples, rate_hz


def _told_frames(frame: bytes) -> int:
    """How many frames follow, when the first one says so (`Xing` or `Info`)."""
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark, 4, 48)
        if at > 0 and len(frame) >= at + 12 and frame[at + 7] & _INFO_FRAMES:
            return int.from_bytes(frame[at + 8 : at + 12])
    return 0


def adts(source: Source) -> ArtifactFacts:
    """Raises ArtifactInvalid."""
    at = samples = rate_hz = 0
    while at < source.size:
        head = source.at(at, 7)
        rate, length = head[2] >> 2 & 15, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or rate >= len(_ADTS_RATES_HZ) or length < 7:
            raise malformed(f"no frame at byte {at}")
        if at + length > source.size:
            raise truncated("the last frame is not whole")
        rate_hz = _ADTS_RATES_HZ[rate]
        samples += 1024 * (1 + (head[6] & 3))
        at += length
    return audio(source, "audio/aac", samples, rate_hz)
