"""Counts the bytes of what a model made, for bills of answers that broke off."""

import re
from typing import Final

_BATCH_BYTES: Final = 64 * 1024


class OutputMeter:
    """Bytes of the JSON strings that stand under some keys in a stream of events.

    Most streams are short and tell their usage, so nobody asks: the events are only kept, and
    measured when a batch is full or the total is read."""

    def __init__(self, strings: tuple[tuple[bytes, re.Pattern[bytes]], ...]) -> None:
        self._strings = strings
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._total = 0
        self._latest = b""

    def add(self, whole: bytes) -> None:
        """Whole events with LF line ends."""
        self._kept.append(whole)
        self._kept_bytes += len(whole)
        if self._kept_bytes > _BATCH_BYTES:
            self._measure()

    @property
    def total(self) -> int:
        if self._kept:
            self._measure()
        return self._total

    @property
    def recent(self) -> bytes:
        """The events added last, as far as they are still here."""
        return self._latest + b"".join(self._kept)

    def _measure(self) -> None:
        batch = b"".join(self._kept)
        self._latest = self._kept[-1]
        for name, string in self._strings:
            # Most keys are absent, and a search costs a tenth of a match; rfind half of `in`.
            if batch.rfind(name) >= 0:
                self._total += sum(map(len, string.findall(batch)))
        self._kept.clear()
        self._kept_bytes = 0


def strings_under(*keys: str) -> tuple[tuple[bytes, re.Pattern[bytes]], ...]:
    """For each key its quoted name, and what matches a member under it whose value is a string;
    the group is the string's inside."""
    inside = r'([^"\\]*(?:\\.[^"\\]*)*)'
    return tuple(
        (f'"{key}"'.encode(), re.compile(f'"{key}": ?"{inside}"'.encode())) for key in keys
    )
