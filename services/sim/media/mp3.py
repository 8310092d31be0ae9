"""MP3 files by hand (ISO 11172-3, MPEG-1 Layer III, 32 kbit/s, 44.1 kHz, mono).

Every granule holds one coefficient of plus one in its first lines, coded with the smallest
Huffman table, so that a decoder plays a steady tone at the centre of that line.
"""

import math
from typing import Final

SAMPLES: Final = 1152  # per frame
RATE_HZ: Final = 44_100
_HEAD: Final = bytes((0xFF, 0xFB, 0x10, 0xC4))  # layer III, no checksum, 32 kbit/s, mono
_BYTES: Final = 144 * 32_000 // RATE_HZ  # per frame without padding
_GAIN: Final = 200  # 210 is a coefficient of one
_LINES: Final = (8, 10, 12, 14, 16, 18, 20, 22)  # of 576, 38 Hz each


def encode(identity: bytes, seconds: float) -> bytes:
    """At least `seconds` of a tone."""
    pairs = _LINES[identity[0] % len(_LINES)] // 2
    # Table 1: "1" is (0, 0), "01" is (1, 0); the sign bit follows.
    coded = "1" * pairs + "01" + "0"
    granule = (
        f"{len(coded):012b}{pairs + 1:09b}{_GAIN:08b}"
        + "0000"  # no scale factor bits
        + "0"  # one long block
        + "00001" * 3  # table 1 in each region
        + "0000" + "000"  # regions
        + "000"  # no pre-emphasis, scale, or table of ones
    )  # fmt: skip
    side = "0" * 9 + "0" * 5 + "0" * 4 + granule * 2  # data begins here; private; no sharing
    bits = side + coded * 2
    bits += "0" * (8 * (_BYTES - len(_HEAD)) - len(bits))
    frame = _HEAD + int(bits, 2).to_bytes(len(bits) // 8)
    return frame * max(1, math.ceil(seconds * RATE_HZ / SAMPLES))
