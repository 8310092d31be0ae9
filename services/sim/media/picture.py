"""What a made picture shows: a mosaic and six digits, both from the identity of the work."""

from dataclasses import dataclass
from typing import Final

COLUMNS: Final = 25
ROWS: Final = 15
_GROUND, _INK, _PAPER = 0, 1, 2  # then two colours of the mosaic
# Hexadecimal digits, three by five cells: one row per digit, top to bottom.
_DIGITS: Final = {
    "0": ("###", "#.#", "#.#", "#.#", "###"),
    "1": (".#.", "##.", ".#.", ".#.", "###"),
    "2": ("###", "..#", "###", "#..", "###"),
    "3": ("###", "..#", "###", "..#", "###"),
    "4": ("#.#", "#.#", "###", "..#", "..#"),
    "5": ("###", "#..", "###", "..#", "###"),
    "6": ("###", "#..", "###", "#.#", "###"),
    "7": ("###", "..#", "..#", ".#.", ".#."),
    "8": ("###", "#.#", "###", "#.#", "###"),
    "9": ("###", "#.#", "###", "..#", "###"),
    "a": (".#.", "#.#", "###", "#.#", "#.#"),
    "b": ("##.", "#.#", "##.", "#.#", "##."),
    "c": ("###", "#..", "#..", "#..", "###"),
    "d": ("##.", "#.#", "#.#", "#.#", "##."),
    "e": ("###", "#..", "##.", "#..", "###"),
    "f": ("###", "#..", "##.", "#..", "#.."),
}

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """`cells` is ROWS tuples of COLUMNS indexes into `palette` (red, green, blue)."""

    cells: tuple[tuple[int, ...], ...]
    palette: tuple[Colour, ...]


def draw(identity: bytes, frame: int = 0) -> Picture:
    """The picture of 32 bytes of identity; other frames of it move the mosaic by one cell."""
    rows = [[_GROUND] * COLUMNS for _ in range(ROWS)]
    shape = int.from_bytes(identity[:18])  # two bits a cell: shown or not, first or second colour
    for y in range(1, 7):
        for x in range(12):
            bits = shape >> 2 * ((y - 1) * 12 + x)
            index = 3 + (bits >> 1 & 1) if bits & 1 else _GROUND
            left, right = (x + frame) % COLUMNS, (COLUMNS - 1 - x + frame) % COLUMNS
            rows[y][left] = rows[y][right] = index
    for y in range(8, ROWS):
        rows[y] = [_PAPER] * COLUMNS
    for place, digit in enumerate(identity.hex()[:6]):
        for y, line in enumerate(_DIGITS[digit]):
            for x, mark in enumerate(line):
                if mark == "#":
                    rows[9 + y][1 + place * 4 + x] = _INK
    return Picture(tuple(map(tuple, rows)), _palette(identity))


def _palette(identity: bytes) -> tuple[Colour, ...]:
    a, b, c = identity[24:27], identity[26:29], identity[29:32]
    dark = (a[0] // 4, a[1] // 4, a[2] // 4)
    light = (192 + b[0] // 4, 192 + b[1] // 4, 192 + b[2] // 4)
    return dark, (16, 16, 16), light, (b[0], 255 - b[1] // 2, b[2]), (255 - c[0] // 2, c[1], c[2])
