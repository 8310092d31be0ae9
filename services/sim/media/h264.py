"""H.264 pictures by hand (ITU-T H.264, baseline, intra only), for flat-coloured mosaics.

A macroblock whose colour is that of its upper or left neighbour is predicted from it without a
residual (about six bits); any other is sent raw as I_PCM. The deblocking filter is off, so that
every decoder shows exactly these colours.
"""

import re
from typing import Final

from services.sim.media.picture import COLUMNS, ROWS, Colour, Picture

_PCM_TYPE, _VERTICAL_TYPE, _HORIZONTAL_TYPE = 25, 1, 2  # mb_type of I slices, table 7-11
_CHROMA_HORIZONTAL, _CHROMA_VERTICAL = 1, 2
# coeff_token for no coefficient, by nC (table 9-5): an I_PCM neighbour counts as 16 coefficients.
_NO_COEFFICIENT: Final = ((2, "1"), (4, "11"), (8, "1111"), (17, "000011"))


class _Bits:
    """A bit string under construction."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0

    def u(self, value: int, width: int) -> None:
        self.raw(format(value, f"0{width}b"))

    def ue(self, value: int) -> None:
        """Exp-Golomb code (9.1)."""
        code = format(value + 1, "b")
        self.raw("0" * (len(code) - 1) + code)

    def raw(self, bits: str) -> None:
        self._parts.append(bits)
        self._length += len(bits)

    def align(self) -> None:
        self.raw("0" * (-self._length % 8))

    def data(self, samples: bytes) -> None:
        """Whole bytes; the string must be aligned."""
        self.raw(format(int.from_bytes(b"\x01" + samples), "b")[1:])

    def text(self) -> str:
        return "".join(self._parts)

    def close(self) -> bytes:
        """With the stop bit and its alignment."""
        self.raw("1")
        self.align()
        return int(self.text(), 2).to_bytes(self._length // 8)


def _predicted(above: bool, nc: int) -> str:
    """A macroblock that looks like its upper or left neighbour."""
    bits = _Bits()
    bits.ue(_VERTICAL_TYPE if above else _HORIZONTAL_TYPE)
    bits.ue(_CHROMA_VERTICAL if above else _CHROMA_HORIZONTAL)
    bits.ue(0)  # QP unchanged
    bits.raw(next(code for below, code in _NO_COEFFICIENT if nc < below))
    return bits.text()


_PREDICTED: Final = {
    (above, nc): _predicted(above, nc) for above in (True, False) for nc in range(17)
}


def _nal(header: int, payload: bytes) -> bytes:
    """A NAL unit; the regular expression inserts the emulation prevention bytes (7.4.1)."""
    return bytes([header]) + re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", payload)


def sequence_parameters(width: int, height: int) -> bytes:
    """SPS for even sizes in pixels."""
    across, down = -(-width // 16), -(-height // 16)
    bits = _Bits()
    for value in (66, 0b1100_0000, 51):  # profile, constraints, level
        bits.u(value, 8)
    for value in (0, 0, 2, 0):  # id, frame number bits - 4, output in decoding order, references
        bits.ue(value)
    bits.raw("0")  # no gaps in frame numbers
    bits.ue(across - 1)
    bits.ue(down - 1)
    bits.raw("11")  # frames only; 8x8 inference
    crop_right, crop_bottom = (across * 16 - width) // 2, (down * 16 - height) // 2
    bits.raw("1")
    for value in (0, crop_right, 0, crop_bottom):
        bits.ue(value)
    bits.raw("0")  # no VUI
    return _nal(0x67, bits.close())


def picture_parameters() -> bytes:
    """PPS: CAVLC, one slice group, deblocking controlled per slice."""
    bits = _Bits()
    for value in (0, 0):
        bits.ue(value)
    bits.raw("00")
    for value in (0, 0, 0):
        bits.ue(value)
    bits.raw("000")
    for value in (0, 0, 0):  # se(0) has the code of ue(0)
        bits.ue(value)
    bits.raw("100")
    return _nal(0x68, bits.close())


def key_frame(picture: Picture, width: int, height: int, number: int) -> bytes:
    """One IDR picture as a NAL unit; neighbours in a stream need different numbers (0 or 1)."""
    across, down = -(-width // 16), -(-height // 16)
    grid = [
        [picture.cells[y * ROWS // down][x * COLUMNS // across] for x in range(across)]
        for y in range(down)
    ]
    samples = [_samples(colour) for colour in picture.palette]
    bits = _Bits()
    for value in (0, 7, 0):  # first macroblock, I slices only, parameters
        bits.ue(value)
    bits.u(0, 4)  # frame number
    bits.ue(number)
    bits.raw("00")  # not kept, not long-term
    bits.ue(0)  # QP as in the parameters
    bits.ue(1)  # no deblocking
    raw_above = [False] * across
    for y, row in enumerate(grid):
        if y and row == grid[y - 1] and not any(raw_above):
            bits.raw(_PREDICTED[True, 0] * across)
            continue
        raw_here: list[bool] = []
        for x, colour in enumerate(row):
            above = y > 0 and grid[y - 1][x] == colour
            beside = x > 0 and row[x - 1] == colour
            raw_here.append(not above and not beside)
            if raw_here[x]:
                bits.ue(_PCM_TYPE)
                bits.align()
                bits.data(samples[colour])
                continue
            counts = [16 * raw_above[x]] * (y > 0) + [16 * raw_here[x - 1]] * (x > 0)
            bits.raw(_PREDICTED[above, (sum(counts) + len(counts) - 1) // len(counts)])
        raw_above = raw_here
    return _nal(0x65, bits.close())


def _samples(colour: Colour) -> bytes:
    """The 384 samples of a macroblock in one colour, BT.601 limited range."""
    red, green, blue = colour
    luma = 16 + (66 * red + 129 * green + 25 * blue + 128) // 256
    first = 128 + (-38 * red - 74 * green + 112 * blue + 128) // 256
    second = 128 + (112 * red - 94 * green - 18 * blue + 128) // 256
    return bytes([luma]) * 256 + bytes([first]) * 64 + bytes([second]) * 64
