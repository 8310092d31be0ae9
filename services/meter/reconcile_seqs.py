"""Which sequence numbers of each worker were seen, and which are missing."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

_BLOCK: Final = 8192
_NAMED: Final = 20


class _Seen:
    __slots__ = ("blocks", "closed_at", "last")

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}  # block number -> bits
        self.last = 0
        self.closed_at = 0


class Sequences:
    """A few bytes per hundred events, whatever numbers a bad event claims."""

    def __init__(self) -> None:
        self._workers: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def note(self, incarnation: str, seq: int) -> None:
        if seq < 1:
            return
        seen = self._workers.setdefault(incarnation, _Seen())
        block, bit = divmod(seq - 1, _BLOCK)
        seen.blocks[block] = seen.blocks.get(block, 0) | 1 << bit
        seen.last = max(seen.last, seq)

    def close(self, incarnation: str, seq: int) -> None:
        """`seq` is the last of the incarnation."""
        self._workers.setdefault(incarnation, _Seen()).closed_at = seq

    def closed(self, incarnation: str) -> bool:
        return incarnation in self._workers and self._workers[incarnation].closed_at > 0

    def beyond_end(self) -> dict[str, int]:
        """incarnation -> a number after its last one."""
        return {
            name: seen.last
            for name, seen in self._workers.items()
            if 0 < seen.closed_at < seen.last
        }

    def missing(self, sent: dict[str, int]) -> dict[str, list[int]]:
        """incarnation -> numbers that were not seen although a later one was, or `sent` says that
        they were sent (the first 20)."""
        found: dict[str, list[int]] = {}
        for name in {*self._workers, *sent}:
            seen = self._workers.get(name, _Seen())
            holes = list(islice(_holes(seen, max(seen.last, sent.get(name, 0))), _NAMED))
            if holes:
                found[name] = holes
        return found


def _holes(seen: _Seen, last: int) -> Iterator[int]:
    full = (1 << _BLOCK) - 1
    for block in range(-(-last // _BLOCK)):
        bits = seen.blocks.get(block, 0)
        if bits == full:
            continue
        for bit in range(min(_BLOCK, last - block * _BLOCK)):
            if not bits >> bit & 1:
                yield block * _BLOCK + bit + 1
