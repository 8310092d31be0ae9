"""Reads the log once and holds every event against what the books say of it."""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from schemas.events import AnyEvent, Error, IncarnationClosed, Request, Usage, WalletMovement
from services.backends.bus.port import Bus, Message
from services.backends.sql.books_audit import BooksAudit, Chunk
from services.core.ledger import postings_for
from services.meter.booking import settlement_row
from services.meter.dead import Poison, Reason, body_hash, event_id_of, read_event
from services.meter.reconcile_report import Report
from services.meter.reconcile_seqs import Sequences

_CHUNK: Final = 2000
_PAIR: Final = "bus-ledger"


class Read(NamedTuple):
    """A message and what it says; `event` None: it cannot be read."""

    message: Message
    event_id: str
    body_hash: str
    event: AnyEvent | None


class Original(NamedTuple):
    """The message from which the ledger took an event. `dead`: why it was set aside, or empty."""

    read: Read
    dead: str


class _Place(msgspec.Struct):
    incarnation: str = ""
    seq: int = 0


_place = msgspec.json.Decoder(_Place)


class LogPass:
    """Goes over partitions one after the other; `open_requests` and `sequences` are complete once
    all of them are read."""

    def __init__(self, bus: Bus, topic: str, audit: BooksAudit, report: Report) -> None:
        self._bus = bus
        self._topic = topic
        self._audit = audit
        self._report = report
        self.open_requests: dict[str, Request] = {}
        self.sequences = Sequences()

    def originals(self, partition: int, first: int, end: int) -> Iterator[Original]:
        """Everything that the ledger took from that range, in order; finds nothing wrong."""
        for reads, chunk in self._chunks(partition, first, end):
            for read in reads:
                taken = chunk.taken.get(read.event_id)
                here = (read.body_hash, partition, read.message.offset)
                if taken is not None and tuple(taken) == here:
                    yield Original(read, _dead_reason(read, chunk))

    def run(self, partition: int, first: int, end: int) -> Iterator[Original]:
        """As `originals`, and reports every event about which log and ledger disagree."""
        taken = 0
        for reads, chunk in self._chunks(partition, first, end):
            for read in reads:
                self._report.events += 1
                if self._is_original(read, chunk):
                    taken += 1
                    original = Original(read, _dead_reason(read, chunk))
                    self._check(original, chunk)
                    yield original
        self._check_totals(partition, first, end, taken)

    def look_further(self, partition: int, first: int, end: int) -> None:
        """Only notes sequence numbers: for what was sent while the ends were being read."""
        for message in self._messages(partition, first, end):
            self._note_place(message.value)

    def _chunks(self, partition: int, first: int, end: int) -> Iterator[tuple[list[Read], Chunk]]:
        messages = self._messages(partition, first, end)
        while part := list(islice(messages, _CHUNK)):
            reads = [_read(message) for message in part]
            events = [read.event for read in reads if read.event is not None]
            chunk = self._audit.chunk(
                [read.event_id for read in reads],
                [e.request_id for e in events if isinstance(e, Request | Usage | Error)],
                [e.movement_id for e in events if isinstance(e, WalletMovement)],
            )
            yield reads, chunk

    def _messages(self, partition: int, first: int, end: int) -> Iterator[Message]:
        if first < end:
            yield from self._bus.read(self._topic, partition, first, end - 1)

    # -- one event ---------------------------------------------------------------------------

    def _is_original(self, read: Read, chunk: Chunk) -> bool:
        message, report = read.message, self._report
        self._note_place(message.value)
        taken = chunk.taken.get(read.event_id)
        where = f"partition {message.partition} offset {message.offset}"
        if taken is None:
            report.differ(_PAIR, read.event_id, f"not in the ledger; {where}")
            return False
        if taken.body_hash != read.body_hash:
            if _dead_reason(read, chunk):
                report.dead += 1
            else:
                report.differ(_PAIR, read.event_id, f"the ledger took other bytes; {where}")
            return False
        if (taken.partition, taken.offset) == (message.partition, message.offset):
            return True
        if taken.partition == message.partition and taken.offset > message.offset:
            report.differ(_PAIR, read.event_id, f"taken from offset {taken.offset}; {where}")
        report.repeated += 1
        return False

    def _note_place(self, body: bytes) -> None:
        try:
            place = _place.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if place.incarnation:
            self.sequences.note(place.incarnation, place.seq)

    def _check(self, original: Original, chunk: Chunk) -> None:
        read, dead = original
        event = read.event
        if isinstance(event, IncarnationClosed):
            self.sequences.close(event.incarnation, event.seq)
        if isinstance(event, Request):
            self.open_requests[event.request_id] = event
        elif isinstance(event, Usage | Error):
            self.open_requests.pop(event.request_id, None)
        if dead:
            self._report.dead += 1
        elif event is None:
            self._report.differ(_PAIR, read.event_id, "cannot be read, but was not set aside")
            return
        self._check_postings(original, chunk)
        if isinstance(event, Usage | Error):
            self._check_settlement(event, dead, chunk)
        elif isinstance(event, WalletMovement) and not dead:
            found = chunk.movements.get(event.movement_id)
            if found is None or tuple(found) != (event.account_id, event.amount_nano):
                self._report.differ(_PAIR, event.event_id, f"the wallet movement is {found}")

    def _check_postings(self, original: Original, chunk: Chunk) -> None:
        event = original.read.event
        expected = []
        if event is not None and not original.dead:
            expected = list(postings_for(event))
        elif event is not None and original.dead == Reason.LATE:
            expected = list(postings_for(event, customer_pays=False))
        found = chunk.postings.get(original.read.event_id, [])
        if found != expected:
            told = [(each.account, each.amount_nano) for each in found]
            wanted = [(each.account, each.amount_nano) for each in expected]
            self._report.differ(
                _PAIR, original.read.event_id, f"postings {told}, by the event {wanted}"
            )

    def _check_settlement(self, event: Usage | Error, dead: str, chunk: Chunk) -> None:
        found = chunk.settlements.get(event.request_id)
        if dead:
            if found is not None and found.event_id == event.event_id:
                self._report.differ(_PAIR, event.event_id, "settled, although it was set aside")
            return
        expected = settlement_row(event)
        self._report.log.add(
            1,
            expected.charged_nano,
            expected.cost_nano - expected.charged_nano,
            expected.provider_cost_nano,
        )
        if found is None:
            self._report.differ(_PAIR, event.event_id, "no settlement")
        elif found != expected:
            wrong = {
                name: f"{had} instead of {want}"
                for name, had, want in zip(expected._fields, found, expected, strict=True)
                if had != want
            }
            self._report.differ(_PAIR, event.event_id, f"settled with {wrong}")

    # -- a whole partition -------------------------------------------------------------------

    def _check_totals(self, partition: int, first: int, end: int, taken: int) -> None:
        totals = self._audit.totals(self._topic, partition, first, end)
        written_off_nano = totals.cost_nano - totals.charged_nano
        self._report.ledger.add(
            totals.requests, totals.charged_nano, written_off_nano, totals.provider_cost_nano
        )
        if totals.events == taken:
            return
        claimed = self._audit.taken_between(self._topic, partition, first, end)
        for message in self._messages(partition, first, end):
            event_id = event_id_of(message.value)
            if claimed.get(event_id) == message.offset:
                del claimed[event_id]
        for event_id, offset in claimed.items():
            self._report.differ(
                _PAIR, event_id, f"only in the ledger, as of partition {partition} offset {offset}"
            )


def _read(message: Message) -> Read:
    event: AnyEvent | None = None
    try:
        event = read_event(message.value)
    except Poison as ex:
        event = ex.event
    return Read(message, event_id_of(message.value), body_hash(message.value), event)


def _dead_reason(read: Read, chunk: Chunk) -> str:
    """Why exactly these bytes were set aside; empty when they were not."""
    for reason, body in chunk.dead.get(read.event_id, ()):
        if body == read.message.value:
            return reason
    return ""
