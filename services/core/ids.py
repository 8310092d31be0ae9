"""Identifiers: UUIDv7 text for requests, `<prefix>_<hex>` for everything that is named once.

Both start with the millisecond of their making, so indexes grow at their end."""

import os
import time
from typing import Final

_BATCH: Final = 256
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_tails: list[str] = []


def uuid7_text() -> str:
    """A canonical UUIDv7, 36 lower-case characters. Safe in threads, greenlets and after fork."""
    ms = f"{time.time_ns() // 1_000_000:012x}"
    return f"{ms[:8]}-{ms[8:]}-{_tail()}"


def uuid7_hex() -> str:
    """A UUIDv7 as 32 hexadecimal digits, for the tail of an incarnation's name."""
    return uuid7_text().replace("-", "")


def new_id(prefix: str) -> str:
    """`<prefix>_<32 hexadecimal digits>`, such as `acct_0199...`."""
    return f"{prefix}_{uuid7_hex()}"


def ulid() -> str:
    """26 characters of Crockford's base 32: a UUIDv7, so it sorts by the time of its making."""
    number = int(uuid7_hex(), 16)
    return "".join(_BASE32[number >> shift & 31] for shift in range(125, -1, -5))


def _tail() -> str:
    # list.pop is atomic, so two threads never take the same tail; a system call per batch only.
    try:
        return _tails.pop()
    except IndexError:
        fresh = _fresh_tails()
        last = fresh.pop()
        _tails.extend(fresh)
        return last


def _fresh_tails() -> list[str]:
    digits = os.urandom(_BATCH * 10).hex()
    return [
        f"7{digits[at : at + 3]}-{_VARIANT[digits[at + 3]]}{digits[at + 4 : at + 7]}"
        f"-{digits[at + 7 : at + 19]}"
        for at in range(0, _BATCH * 20, 20)
    ]


# A forked worker must not hand out the tails that its parent still holds.
os.register_at_fork(after_in_child=_tails.clear)
