"""The arithmetic of rolling windows of spend: no interval of a window's length ever holds more
than its limit.

Spend lies in buckets of 1/60 of the window, by the time that it is counted at. A bucket counts
from its first spend until `window + SLACK` after its end. So what was spent at T counts at least
until T + window, also when the clock that told T was SLACK behind; until it is counted it is
leased. Times are microseconds UTC, money is nano-USD.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

BUCKETS: Final = 60
SLACK_US: Final = 1_000_000  # a worker whose clock is further off gets no grant

Buckets = list[tuple[int, int]]  # (number, nano), ascending; number = time // bucket_us

_decoder = msgspec.json.Decoder(Buckets)


def decode(text: str | None) -> Buckets:
    """The buckets of a limit row."""
    return _decoder.decode(text) if text else []


def encode(buckets: Buckets) -> str:
    return msgspec.json.encode(buckets).decode()


def bucket_us(window_us: int) -> int:
    """The length of a bucket."""
    return -(-window_us // BUCKETS)


def counted_at(occurred_at: int, granted_at: int, now_us: int) -> int:
    """When spend is counted: when it occurred, but not before its lease was granted and not in
    the future."""
    return min(max(occurred_at, granted_at), now_us)


def clock_off_us(before_us: int, now_us: int, after_us: int) -> int:
    """How far a clock is off the database's at least: that was read between two readings of it."""
    return min(max(now_us, before_us), after_us) - now_us


def added(
    buckets: Buckets, window_us: int, spends: Iterable[tuple[int, int]], now_us: int
) -> Buckets:
    """The buckets with `spends`, (counted at, nano), without those that count no more."""
    sums = dict(buckets)
    length_us = bucket_us(window_us)
    for at, nano in spends:
        number = at // length_us
        sums[number] = sums.get(number, 0) + nano
    return [(n, sums[n]) for n in sorted(sums) if sums[n] and counts_until(n, window_us) > now_us]


def counts_until(number: int, window_us: int) -> int:
    """From when on the bucket counts no more."""
    return (number + 1) * bucket_us(window_us) + window_us + SLACK_US


def returns(buckets: Buckets, window_us: int, now_us: int) -> tuple[tuple[int, int], ...]:
    """What comes back when: (time, nano) of every bucket that counts, ascending."""
    found = ((counts_until(number, window_us), nano) for number, nano in buckets)
    return tuple((at, nano) for at, nano in found if at > now_us)
