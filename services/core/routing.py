"""Which model a name means, which channels may serve it, and which of these rest for a while."""

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from services.core.catalog import Channel, Snapshot
from services.core.prices import ModelPrice, PriceBook

_SUFFIX: Final = re.compile(r"(?:\[1m\]|-latest|-\d{8}|-\d{4}-\d{2}-\d{2})$")
_DOT: Final = re.compile(r"(?<=\d)\.(?=\d)")


def dashed(name: str) -> str:
    """`name` with `-` for `.` between digits."""
    return _DOT.sub("-", name)


def normalized(name: str) -> str:
    """`name` as it is compared: dashed, without a date, `-latest` or `[1m]`."""
    name = dashed(name)
    while True:
        shorter = _SUFFIX.sub("", name)
        if shorter == name or not shorter:
            return name
        name = shorter


class ModelIndex:
    """Finds the priced model that a client's name means."""

    def __init__(self, book: PriceBook) -> None:
        self._exact: dict[str, ModelPrice] = {}
        self._normal: dict[str, ModelPrice] = {}
        # Ids before aliases, so that an alias never hides a model.
        for model in book.models.values():
            self._exact[model.model] = model
            self._normal.setdefault(normalized(model.model), model)
        for model in book.models.values():
            for alias in model.aliases:
                self._exact.setdefault(alias, model)
                self._normal.setdefault(normalized(alias), model)

    def resolve(self, asked: str) -> ModelPrice | None:
        """The model of that id or alias; None when there is none. Case counts."""
        found = self._exact.get(asked)
        return found if found is not None else self._normal.get(normalized(asked[:256]))


def candidates(
    snapshot: Snapshot, group: str, dialect: str, canonical: str, session: str
) -> list[Channel]:
    """The channels of `group` that serve `canonical` in `dialect`, best first: by priority, then
    by a weighted hash on which a session stays. Without a session the order is drawn by weight."""
    fitting = [
        channel
        for channel in snapshot.channels
        if channel.dialect == dialect and canonical in channel.models and group in channel.groups
    ]
    if len(fitting) > 1:
        fitting.sort(key=lambda channel: (-channel.priority, _distance(channel, session)))
    return fitting


def _distance(channel: Channel, session: str) -> float:
    """Weighted rendezvous hashing: an exponential draw of rate `weight`; the smallest wins, so a
    channel that leaves moves only its own sessions."""
    if session:
        digest = hashlib.blake2b(f"{channel.name}\0{session}".encode(), digest_size=8).digest()
        draw = (int.from_bytes(digest) + 1) / (2**64 + 1)
    else:
        draw = 1.0 - random.random()
    return -math.log(draw) / max(1, channel.weight)


class _Rest(NamedTuple):
    failures: int
    until_s: float
    told: bool  # the upstream named the end itself


class Cooldowns:
    """What a worker knows of its channels' health, by channel name.

    A channel rests as long as its upstream said (`retry-after`), 1 s after a 429 that did not say,
    and from the third failure in a row 1, 2, 4 ... 30 s. A refused credential parks it."""

    FAILURES_BEFORE_REST: Final = 3
    REST_S: Final = 1.0
    REST_MAX_S: Final = 30.0
    TOLD_MAX_S: Final = 3600.0
    PARK_S: Final = 60.0
    _CHANNELS_MAX: Final = 10_000

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._rests: dict[str, _Rest] = {}

    def ready(self, channel: str) -> bool:
        """Whether a call may be sent to the channel now."""
        rest = self._rests.get(channel)
        return rest is None or self._monotonic_s() >= rest.until_s

    def ok(self, channel: str) -> None:
        """A call was answered: the channel is healthy."""
        if self._rests:
            self._rests.pop(channel, None)

    def failed(self, channel: str, status: int, retry_after_s: float | None) -> None:
        """A call failed with `status` (0: no answer)."""
        known = self._rests.get(channel)
        failures = known.failures + 1 if known is not None else 1
        now_s = self._monotonic_s()
        if retry_after_s is not None and retry_after_s > 0:
            self._put(channel, _Rest(failures, now_s + min(retry_after_s, self.TOLD_MAX_S), True))
            return
        over = failures - (1 if status == 429 else self.FAILURES_BEFORE_REST)
        rest_s = min(self.REST_S * 2 ** min(over, 10), self.REST_MAX_S) if over >= 0 else 0.0
        until_s, told = now_s + rest_s, False
        if known is not None and known.until_s > until_s:
            until_s, told = known.until_s, known.told
        self._put(channel, _Rest(failures, until_s, told))

    def park(self, channel: str) -> None:
        """The upstream refused our credential: tried again after a minute."""
        self._put(
            channel, _Rest(self.FAILURES_BEFORE_REST, self._monotonic_s() + self.PARK_S, False)
        )

    def known_end_s(self, channels: Iterable[str]) -> float | None:
        """Seconds until the first of `channels` is ready, when every one of them rests until a
        time that its upstream told; else None."""
        now_s = self._monotonic_s()
        waits: list[float] = []
        for channel in channels:
            rest = self._rests.get(channel)
            if rest is None or not rest.told or rest.until_s <= now_s:
                return None
            waits.append(rest.until_s - now_s)
        return min(waits) if waits else None

    def _put(self, channel: str, rest: _Rest) -> None:
        if len(self._rests) >= self._CHANNELS_MAX and channel not in self._rests:
            self._rests.clear()  # only after thousands of renamed channels
        self._rests[channel] = rest
