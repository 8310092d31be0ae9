"""Requests per minute, tokens per minute and concurrency: the arithmetic, without I/O or a clock.

A sliding minute is kept in buckets of half a second. What is counted in a bucket may happen until
the bucket's end and counts until a minute after it, so that no interval of a minute, wherever it
begins, holds more than the limit: at most one second of the minute is lost to the rounding. That
also lets a worker take starts of requests in advance: they end with their bucket.

Concurrency is counted in slots: each worker tells how many it keeps, the centre adds up."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from services.core.usage import INPUT

MINUTE_US: Final = 60_000_000
BUCKETS: Final = 120  # of a minute
SMALL_CONCURRENCY: Final = 64  # up to here every request asks at the centre
SMALL_REQUESTS_PER_MIN: Final = 300
CONCURRENCY_PARTS: Final = 16  # a worker takes this part of a larger limit at a time
REQUESTS_PARTS: Final = BUCKETS  # ... or what is due in one bucket
_TOKENS: Final = (*INPUT, "output")


class Kind(StrEnum):
    """What is counted."""

    CONCURRENCY = "concurrency"
    REQUESTS = "requests"
    TOKENS = "tokens"


class Rule(NamedTuple):
    """The limits of one subject that a request counts against; 0: none. `whose` is for people:
    account, key, parent key, member."""

    subject: str  # its id
    whose: str
    concurrency: int = 0
    requests_per_min: int = 0
    tokens_per_min: int = 0


def tokens_used(usage: Mapping[str, int]) -> int:
    """What counts of an answer's usage: every token that went in or came out, cached ones too."""
    return sum(usage.get(name, 0) for name in _TOKENS)


class Window:
    """What was counted in the last minute: bucket number -> how much."""

    __slots__ = ("_counts", "_minute_us", "_width_us")

    def __init__(self, counts: Mapping[int, int], minute_us: int = MINUTE_US) -> None:
        self._counts = dict(counts)
        self._minute_us = minute_us
        self._width_us = minute_us // BUCKETS

    def bucket(self, now_us: int) -> int:
        """Where something that happens from now on is counted: what is counted may happen later
        than now, but not after the bucket's end."""
        return now_us // self._width_us + 1

    def end_us(self, bucket: int) -> int:
        """Until when what is counted in the bucket may happen."""
        return (bucket + 1) * self._width_us

    def add(self, now_us: int, n: int) -> int:
        """Counts `n` now; the bucket."""
        bucket = self.bucket(now_us)
        self._counts[bucket] = self._counts.get(bucket, 0) + n
        return bucket

    def take_back(self, bucket: int, n: int) -> None:
        """`n` of what was counted in the bucket did not happen."""
        left = self._counts.get(bucket, 0) - n
        if left > 0:
            self._counts[bucket] = left
        else:
            self._counts.pop(bucket, None)

    def total(self, now_us: int) -> int:
        """What counts now."""
        oldest = self._oldest(now_us)
        return sum(n for bucket, n in self._counts.items() if bucket >= oldest)

    def wait_us(self, now_us: int, over: int) -> int:
        """How long until `over` of what counts now counts no longer, if nothing comes; a minute
        when there is not so much."""
        oldest = self._oldest(now_us)
        for bucket in sorted(bucket for bucket in self._counts if bucket >= oldest):
            over -= self._counts[bucket]
            if over <= 0:
                return self.end_us(bucket) + self._minute_us - now_us
        return self._minute_us

    def counts(self, now_us: int) -> dict[int, int]:
        """What still counts: what to store."""
        oldest = self._oldest(now_us)
        return {bucket: n for bucket, n in sorted(self._counts.items()) if bucket >= oldest}

    def _oldest(self, now_us: int) -> int:
        """The first bucket whose end is less than a minute ago."""
        return (now_us - self._minute_us) // self._width_us


class Line(NamedTuple):
    """What a worker says of one limit in a round. Concurrency: it `keep`s so many slots, in use or
    not. Requests: it gives `back` so many starts of `bucket`. `want`: how many more than its asks
    need it would take in advance."""

    subject: str
    kind: Kind
    limit: int
    keep: int = 0
    back: int = 0
    bucket: int = 0
    want: int = 0


Ask = Sequence[int]  # one request: the places of the lines of which it needs one each


class Failing(NamedTuple):
    """A limit with no room: `used` of it now. `wait_us`: when there may be room; 0: not known."""

    line: int
    used: int
    wait_us: int


class Taken(NamedTuple):
    """The centre's answer to a line: `n` for the asks and in advance together, `used` of the
    limit with them; requests only: to be used within `valid_us`, as of `bucket`; when none is left
    there will be room in `room_us`."""

    n: int
    used: int
    bucket: int = 0
    valid_us: int = 0
    room_us: int = 0


class Ruling(msgspec.Struct, frozen=True):
    """The answer to a round: `taken` per line; `failing` per ask, empty where it was granted."""

    taken: list[Taken]
    failing: list[list[Failing]]


class Centre:
    """The state of the limits of one round, as the centre holds it: slots that other workers keep,
    and the windows of requests."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us
        self.others: dict[str, int] = {}
        self.windows: dict[str, Window] = {}

    def rule(self, lines: Sequence[Line], asks: Sequence[Ask]) -> Ruling:
        """Gives each ask, in order, one of everything that it needs, or nothing; then what the
        lines want in advance, at most half of what is left. Moves `windows`."""
        for line in lines:
            if line.back:
                self.windows[line.subject].take_back(line.bucket, line.back)
        used = [self._used(line) for line in lines]
        taken = [0] * len(lines)
        failing = []
        for ask in asks:
            short = [at for at in ask if used[at] >= lines[at].limit]
            failing.append([self._failing(at, lines[at], used[at]) for at in short])
            if not short:
                for at in ask:
                    used[at] += 1
                    taken[at] += 1
        for at, line in enumerate(lines):
            more = min(line.want, max(line.limit - used[at], 0) // 2)
            used[at] += more
            taken[at] += more
        return Ruling(
            [self._taken(line, *pair) for line, *pair in zip(lines, taken, used, strict=True)],
            failing,
        )

    def _used(self, line: Line) -> int:
        if line.kind is Kind.CONCURRENCY:
            return self.others.get(line.subject, 0) + line.keep
        return self.windows[line.subject].total(self.now_us)

    def _failing(self, at: int, line: Line, used: int) -> Failing:
        wait_us = 0
        if line.kind is Kind.REQUESTS:
            wait_us = self.windows[line.subject].wait_us(self.now_us, used + 1 - line.limit)
        return Failing(at, used, wait_us)

    def _taken(self, line: Line, n: int, used: int) -> Taken:
        if line.kind is Kind.CONCURRENCY or not n:
            return Taken(n, used)
        window = self.windows[line.subject]
        bucket = window.add(self.now_us, n)
        room_us = 0 if used < line.limit else window.wait_us(self.now_us, used + 1 - line.limit)
        return Taken(n, used, bucket, window.end_us(bucket) - self.now_us, room_us)


def is_small(kind: Kind, limit: int) -> bool:
    """Whether every request asks at the centre: nothing lies idle at a worker then."""
    return limit <= (SMALL_CONCURRENCY if kind is Kind.CONCURRENCY else SMALL_REQUESTS_PER_MIN)


def in_advance(kind: Kind, limit: int) -> int:
    """How much more than it needs now a worker takes."""
    if is_small(kind, limit):
        return 0
    return limit // (CONCURRENCY_PARTS if kind is Kind.CONCURRENCY else REQUESTS_PARTS)
