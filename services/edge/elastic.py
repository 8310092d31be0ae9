"""Elastic holds: a stream whose output can be seen holds a part of its bound and asks for more.

A hold starts with the input bound and what answers of this account and model cost lately, at least
one slice of output; it grows by a slice when half a slice is left. The bytes that pass are counted
by the relay; only when they could have used up what is held does anybody look."""

from collections import OrderedDict
from typing import Final, TypeVar

import gevent
import msgspec

from schemas.events import Usage
from services.backends.clock import Clock
from services.core.dialects.base import BodyShape, StreamScan
from services.core.holds import (
    BYTES_PER_TOKEN_MIN,
    SLICE_TOKENS,
    Bound,
    bytes_within,
    shows_its_output,
    used_nano,
)
from services.core.outcomes import BYTES_PER_TOKEN
from services.core.rating import Unpriced, rate
from services.edge.exchange import Exchange
from services.edge.lease import Reservation
from services.edge.leases import LeaseBook

K = TypeVar("K")
V = TypeVar("V")

FOREVER: Final = 1 << 62  # more bytes than any stream has
KEYS_MAX: Final = 10_000
DAY_US: Final = 86_400_000_000
# A told token counts as so many tokens of the bound, which takes two bytes for one.
_TOLD_TO_BOUND: Final = BYTES_PER_TOKEN // BYTES_PER_TOKEN_MIN


class HoldPolicy:
    """How much a request holds at first. What it remembers is this worker's alone and bounded:
    the usual size of an account's answers, and what was written off for a key today (UTC)."""

    def __init__(self, clock: Clock, writeoff_limit_nano: int) -> None:
        self._clock = clock
        self._writeoff_limit_nano = writeoff_limit_nano
        self._usual: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._written_off: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def shape(self, x: Exchange) -> BodyShape:
        """What bounds the input of the request: its body, and for a key that costs us the context
        window. Bodies can name input that is not in them in more ways than anybody reads."""
        assert x.parsed is not None
        assert x.key is not None
        shape = x.parsed.shape
        if self._costs_us(x.key.id):
            shape = msgspec.structs.replace(shape, stored_input=True)
        return shape

    def first_nano(self, x: Exchange, bound: Bound) -> tuple[int, int]:
        """(what the request should hold, the least that it may hold), both the whole bound when
        it is not elastic."""
        assert x.parsed is not None
        assert x.price is not None
        assert x.key is not None
        if not shows_its_output(x.price, x.parsed) or self._costs_us(x.key.id):
            return bound.whole_nano, bound.whole_nano
        usual = self._usual.get((x.key.account_id, x.price.model), 0)
        slices = (
            min(bound.tokens_nano(max(usual, SLICE_TOKENS)), bound.output_nano),
            min(bound.tokens_nano(SLICE_TOKENS), bound.output_nano),
        )
        return bound.input_nano + slices[0], bound.input_nano + slices[1]

    def ended(self, event: Usage) -> None:
        """Learns from a billed answer: the usual size is a slowly falling maximum."""
        if event.written_off_nano:
            today, before_nano = self._today(event.key_id)
            _put(self._written_off, event.key_id, (today, before_nano + event.written_off_nano))
        if event.stream:
            name = (event.account_id, event.priced_as)
            made = event.usage.get("output", 0) * _TOLD_TO_BOUND
            _put(self._usual, name, max(made, self._usual.get(name, 0) * 7 // 8))

    def _costs_us(self, key_id: str) -> bool:
        return self._today(key_id)[1] > self._writeoff_limit_nano

    def _today(self, key_id: str) -> tuple[int, int]:
        """(the day, what was written off on it)"""
        today = self._clock.now_us() // DAY_US
        day, nano = self._written_off.get(key_id, (today, 0))
        return today, nano if day == today else 0


class ElasticHold:
    """Keeps one stream within its hold. `room` and `first_room` are bytes of the stream."""

    def __init__(self, x: Exchange, scan: StreamScan, leases: LeaseBook) -> None:
        assert x.reservation is not None
        assert x.bound is not None
        self._x = x
        self._bound = bound = x.bound
        self._scan = scan
        self._leases = leases
        self._reservation: Reservation = x.reservation
        self._slice_nano = max(bound.tokens_nano(SLICE_TOKENS), 1)
        self._ask_below_nano = self._slice_nano // 2
        self._asking: gevent.Greenlet | None = None
        self._input_nano: int | None = None  # as told, once that is known
        self.used_up = False

    @property
    def first_room(self) -> int:
        if self._reservation.hold_nano >= self._bound.whole_nano:
            return FOREVER
        return bytes_within(self._bound, self._reservation.hold_nano - self._bound.input_nano)

    def room(self) -> int:
        """How many bytes may pass before the next look. Asks for more money when little is left,
        waits for it when nothing is; afterwards `used_up` tells whether the stream must end."""
        if self._scan.finish_reason:
            return FOREVER  # only usage and end marker are still to come
        if self._input_nano is None:
            self._input_nano = self._told_input_nano()
        left_nano = self._left_nano()
        input_nano = self._bound.input_nano if self._input_nano is None else self._input_nano
        missing_nano = input_nano + self._bound.output_nano - self._reservation.hold_nano
        if missing_nano <= 0:
            return FOREVER
        if left_nano < self._ask_below_nano and self._asking is None:
            need_nano = min(self._slice_nano + max(-left_nano, 0), missing_nano)
            self._asking = gevent.spawn(self._ask, need_nano)
        if left_nano < 0 and self._asking is not None:
            self._asking.join()
            left_nano = self._left_nano()
        self.used_up = left_nano < 0
        return bytes_within(self._bound, left_nano)

    def _ask(self, need_nano: int) -> None:
        try:
            if self._leases.extend(self._reservation, need_nano):
                self._ask_below_nano = self._slice_nano // 2
            else:
                self._ask_below_nano //= 2
        finally:
            self._asking = None

    def _left_nano(self) -> int:
        usage = self._scan.usage or {}
        return self._reservation.hold_nano - used_nano(
            self._bound,
            output_bytes=self._scan.output_bytes,
            told_output=usage.get("output", 0),
            told_input_nano=self._input_nano,
        )

    def _told_input_nano(self) -> int | None:
        x = self._x
        usage = {k: n for k, n in (self._scan.usage or {}).items() if k != "output"}
        if not usage or x.view is None or x.channel is None or x.price is None or x.key is None:
            return None
        try:
            return rate(
                x.view.prices.book,
                channel=x.channel.name,
                priced_as=x.price.model,
                group=x.key.group,
                usage=usage,
                tier=x.tier,
            ).cost_nano
        except Unpriced:
            return None


def _put(table: OrderedDict[K, V], name: K, value: V) -> None:
    table[name] = value
    table.move_to_end(name)
    if len(table) > KEYS_MAX:
        table.popitem(last=False)
