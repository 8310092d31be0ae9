"""A message of the log on its way into the books: what it says, or why it cannot be booked."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from schemas.events import (
    MOVEMENT_MAX_NANO,
    AnyEvent,
    Error,
    LeaseClosed,
    Request,
    Usage,
    WalletMovement,
)
from services.backends.bus.port import Message
from services.core.prices import PriceVersion
from services.meter.dead import (
    UNREADABLE,
    Poison,
    Reason,
    TimeLimits,
    body_hash,
    event_id_of,
    read_event,
)
from services.meter.rerate import Rerate

_KNOWN_ACCOUNTS: Final = 100_000
_REQUEST_MAX_NANO: Final = 10**16  # 10 million USD for one request is no price, it is a bug
_MAX_I64: Final = 2**63 - 1


class Entry(msgspec.Struct):
    """`event` None: the bytes are no event. `poison` set: it goes to `dead_event`. `counts`: it is
    one of the events that its lease waits for."""

    message: Message
    event_id: str
    body_hash: str
    event: AnyEvent | None
    poison: Poison | None
    counts: bool = True

    @property
    def kind(self) -> str:
        return str(self.event.__struct_config__.tag) if self.event is not None else "unreadable"


class EntryReader:
    """Reads messages without touching the books. `has_account` and `load_prices` ask the database;
    what they found is kept, for accounts and price versions are never removed."""

    def __init__(
        self,
        has_account: Callable[[str], bool],
        load_prices: Callable[[str], PriceVersion | None],
        times: TimeLimits = TimeLimits(),
    ) -> None:
        self.times = times
        self._has_account = has_account
        self._accounts: set[str] = set()
        self._rerate = Rerate(load_prices)

    def read(self, messages: Sequence[Message]) -> list[Entry]:
        """One entry per message. What the two callables raise passes."""
        return [self._entry(message) for message in messages]

    def _entry(self, message: Message) -> Entry:
        body = message.value
        hashed = body_hash(body)
        event: AnyEvent | None = None
        try:
            event = read_event(body)
            if message.timestamp_us:  # 0: the time was held against it before
                self.times.check(event, message.timestamp_us)
            self._check(event)
        except Poison as ex:
            event = event or ex.event
            if event is None:
                ex = Poison(ex.reason, UNREADABLE + ex.detail)
            return Entry(message, event_id_of(body), hashed, event, ex)
        return Entry(message, event.event_id, hashed, event, None)

    def _check(self, event: AnyEvent) -> None:
        if isinstance(event, Usage):
            self._check_request(event)
            _check_amount(event.cost_nano, _REQUEST_MAX_NANO)
            _check_amount(event.provider_cost_nano, _REQUEST_MAX_NANO)
            self._rerate.check(event)
        elif isinstance(event, Error):
            self._check_request(event)
            _check_amount(event.provider_cost_nano, _REQUEST_MAX_NANO)
        elif isinstance(event, Request):
            self._check_request(event)
        elif isinstance(event, WalletMovement):
            self._check_account(event.account_id)
            _check_amount(abs(event.amount_nano), MOVEMENT_MAX_NANO)
        elif isinstance(event, LeaseClosed):
            self._check_account(event.account_id)
            _check_amount(event.events, _MAX_I64)

    def _check_request(self, event: Request | Usage | Error) -> None:
        if not event.request_id:
            raise Poison(Reason.BAD_SCHEMA, "no request_id")
        self._check_account(event.account_id)

    def _check_account(self, account_id: str) -> None:
        if account_id in self._accounts:
            return
        if not self._has_account(account_id):
            raise Poison(Reason.UNKNOWN_ACCOUNT, account_id)
        if len(self._accounts) >= _KNOWN_ACCOUNTS:
            self._accounts.clear()
        self._accounts.add(account_id)


def _check_amount(amount: int, most: int) -> None:
    if amount > most:
        raise Poison(Reason.OUT_OF_RANGE, f"{amount} in one event, at most {most} is believed")
