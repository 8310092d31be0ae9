"""MP4 files by hand: one H.264 track whose samples show two pictures in turn."""

import struct
from typing import Final

from services.sim.media import h264
from services.sim.media.picture import draw

FRAMES_PER_S: Final = 4
_IDENTITY: Final = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def encode(identity: bytes, width: int, height: int, seconds: float) -> bytes:
    """A film of this identity; odd sizes are rounded up to even ones.

    Two pictures are stored; the sample table names them again and again.
    """
    width, height = width + width % 2, height + height % 2
    count = max(1, round(seconds * FRAMES_PER_S))
    stored = [
        _sized(h264.key_frame(draw(identity, n), width, height, n)) for n in range(min(count, 2))
    ]
    kind = _box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2avc1mp41")
    head = _moov(width, height, stored, count, 0)
    first = len(kind) + len(head) + 8
    return kind + _moov(width, height, stored, count, first) + _box(b"mdat", *stored)


def _sized(nal: bytes) -> bytes:
    return struct.pack(">I", len(nal)) + nal


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def _full(kind: bytes, *parts: bytes, version_flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version_flags), *parts)


def _moov(width: int, height: int, stored: list[bytes], count: int, first: int) -> bytes:
    times = struct.pack(">4I", 0, 0, FRAMES_PER_S, count)
    movie = struct.pack(">IHHII", 0x10000, 0x100, 0, 0, 0) + _IDENTITY + bytes(24)
    track = struct.pack(">5I", 0, 0, 1, 0, count) + bytes(8) + struct.pack(">4H", 0, 0, 0, 0)
    size = struct.pack(">II", width << 16, height << 16)
    reference = _full(b"url ", version_flags=1)
    media = _box(
        b"minf",
        _full(b"vmhd", bytes(8), version_flags=1),
        _box(b"dinf", _full(b"dref", struct.pack(">I", 1), reference)),
        _samples(width, height, stored, count, first),
    )
    handler = struct.pack(">I", 0) + b"vide" + bytes(12) + b"mosaic\0"
    return _box(
        b"moov",
        _full(b"mvhd", times, movie, struct.pack(">I", 2)),
        _box(
            b"trak",
            _full(b"tkhd", track, _IDENTITY, size, version_flags=3),
            _box(
                b"mdia",
                _full(b"mdhd", times, struct.pack(">HH", 0x55C4, 0)),
                _full(b"hdlr", handler),
                media,
            ),
        ),
    )


def _samples(width: int, height: int, stored: list[bytes], count: int, first: int) -> bytes:
    offsets = [first, first + len(stored[0])]
    entry = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HH", width, height)
    entry += struct.pack(">IIIH", 0x480000, 0x480000, 0, 1) + bytes(32) + struct.pack(">Hh", 24, -1)
    parameters = h264.sequence_parameters(width, height)
    more = h264.picture_parameters()
    setup = b"\x01" + parameters[1:4] + b"\xff\xe1" + struct.pack(">H", len(parameters))
    setup += parameters + b"\x01" + struct.pack(">H", len(more)) + more
    film = _box(b"avc1", entry, _box(b"avcC", setup))
    sizes = [len(stored[n % 2]) for n in range(count)]
    places = [offsets[n % 2] for n in range(count)]
    return _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1), film),
        _full(b"stts", struct.pack(">III", 1, count, 1)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        _full(b"stsz", struct.pack(f">{2 + count}I", 0, count, *sizes)),
        _full(b"stco", struct.pack(f">{1 + count}I", count, *places)),
    )
