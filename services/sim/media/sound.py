"""Sound files by hand: a tone whose pitch follows from the identity of the work.

A WAV carries the spoken text in its LIST chunk, so that its transcription gives the text back.
"""

import math
import struct
from array import array
from typing import Final, NamedTuple

RATE_HZ: Final = 24_000
_PITCHES_HZ: Final = (240, 300, 320, 400, 480, 500, 600, 800)  # divisors of the rate
_BYTES_PER_S: Final = 2 * RATE_HZ


class Heard(NamedTuple):
    seconds: float
    text: str  # empty when the file carries none


def pcm(identity: bytes, seconds: float) -> bytes:
    """Signed 16-bit little-endian mono at RATE_HZ."""
    period = RATE_HZ // _PITCHES_HZ[identity[0] % len(_PITCHES_HZ)]
    wave = array(
        "h", (round(8000 * math.sin(2 * math.pi * n / period)) for n in range(period))
    ).tobytes()
    count = max(1, round(seconds * RATE_HZ))
    return (wave * (count // period + 1))[: 2 * count]


def wav(identity: bytes, seconds: float, text: str) -> bytes:
    samples = pcm(identity, seconds)
    kind = struct.pack("<HHIIHH", 1, 1, RATE_HZ, _BYTES_PER_S, 2, 16)
    note = b"INFO" + _chunk(b"ICMT", text.encode() + b"\0")
    body = b"WAVE" + _chunk(b"fmt ", kind) + _chunk(b"LIST", note) + _chunk(b"data", samples)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def hear(data: bytes) -> Heard:
    """Length and text of a WAV; any other file counts as 16 kB a second."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return Heard(len(data) / 16_000, "")
    rate, seconds, text, at = _BYTES_PER_S, 0.0, "", 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        if kind == b"fmt " and len(body) >= 12:
            rate = max(1, struct.unpack_from("<I", body, 8)[0])
        elif kind == b"LIST" and body[4:8] == b"ICMT":
            length = struct.unpack_from("<I", body, 8)[0]
            text = body[12 : 12 + length].rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"data":
            seconds = len(body) / rate
        at += 8 + size + size % 2
    return Heard(seconds, text)
