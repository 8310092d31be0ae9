"""What one transaction of the books does with a batch of events, after the position has moved.

A dead event is noted as applied too, so that a replay finds it and posts nothing. A dead `usage`
is not counted in its lease: the lease then never completes, and the money that the request held
stays leased until the event is replayed or dismissed (`dead_repair`). Any other dead event that
can be read counts.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from sqlalchemy import Connection

from schemas.events import Error, IncarnationClosed, LeaseClosed, Request, Usage
from services.backends.lifecycle import crash_point
from services.backends.sql import ledger
from services.backends.sql.budgets import Charge, LeaseEnd, SettleRefused
from services.backends.sql.ledger import LedgerStore, Taken
from services.core.ledger import postings_for
from services.meter.dead import Poison, Reason
from services.meter.entries import Entry

# Budgets' words -> ours.
_REFUSALS: Final = {
    "no_lease": Reason.UNKNOWN_LEASE,
    "unknown_lease": Reason.UNKNOWN_LEASE,
    "lease_closed": Reason.LATE,
    "lease_overrun": Reason.LEASE_OVERDRAWN,
    "lease_events": Reason.LEASE_OVERDRAWN,
}


class Refused(Exception):
    """Nothing may be stored: these entries are dead now; book the batch again."""


class Leases(Protocol):
    """What `Budgets` does in the ledger's transaction; a rebuild has no leases."""

    def settle(
        self, connection: Connection, charges: Sequence[Charge], closed: Sequence[LeaseEnd] = ()
    ) -> None: ...

    def finish_closing(self, connection: Connection, incarnation_ids: Sequence[str]) -> None: ...


class Outcome(msgspec.Struct):
    """What a transaction did with its batch; `fates` in the order of the log, True: dead. Of the
    `duplicates`, `dead_again` were set aside before."""

    booked: list[Entry]
    dead: list[tuple[Entry, Poison]]
    duplicates: int
    fates: list[bool]
    dead_again: int = 0


class Booking:
    """Composes the SQL stores. Keeps no state: a transaction may run more than once."""

    def __init__(self, store: LedgerStore, budgets: Leases, topic: str) -> None:
        self._store = store
        self._budgets = budgets
        self._topic = topic

    def book(self, connection: Connection, partition: int, entries: Sequence[Entry]) -> Outcome:
        """Raises Refused."""
        outcome = self._take(connection, partition, entries)
        crash_point("ledger.applied")
        self._settle_requests(connection, outcome.booked)
        self._store.add_postings(connection, _book_entries(outcome))
        crash_point("ledger.posted")
        if outcome.dead:
            rows = [_dead_row(entry, poison) for entry, poison in outcome.dead]
            self._store.add_dead(connection, self._topic, partition, rows)
        over = [
            each.event.incarnation
            for each in outcome.booked
            if isinstance(each.event, IncarnationClosed)
        ]
        if over:
            self._budgets.finish_closing(connection, over)
        self._settle_leases(connection, outcome)
        crash_point("ledger.settled")
        return outcome

    def rebook(self, connection: Connection, entry: Entry, *, counted: bool) -> None:
        """Books an event that was set aside before and is noted as applied. `counted`: its lease
        has counted it then. Raises Refused, `entry.poison` telling why."""
        outcome = Outcome([entry], [], 0, [False])
        self._settle_requests(connection, outcome.booked)
        self._store.add_postings(connection, _book_entries(outcome))
        if isinstance(entry.event, IncarnationClosed):
            self._budgets.finish_closing(connection, [entry.event.incarnation])
        if not counted:
            self._settle_leases(connection, outcome)

    def book_late(self, connection: Connection, entry: Entry, poison: Poison) -> None:
        """Posts an event that was set aside and whose lease is over: our loss."""
        self._store.add_postings(connection, _book_entries(Outcome([], [(entry, poison)], 0, [])))

    def _take(self, connection: Connection, partition: int, entries: Sequence[Entry]) -> Outcome:
        """Sorts the entries into new, dead and seen before."""
        rows = [
            ledger.AppliedRow(each.event_id, each.body_hash, each.message.offset)
            for each in entries
        ]
        outcome = Outcome([], [], 0, [])
        taken = self._store.add_applied(connection, self._topic, partition, rows)
        for entry, found in zip(entries, taken, strict=True):
            poison = entry.poison
            if found is Taken.CONFLICT:
                poison = Poison(Reason.HASH_CONFLICT, "the event_id was applied with other bytes")
            if found is Taken.DUPLICATE or (
                found is Taken.CONFLICT
                and self._store.is_dead(connection, entry.event_id, entry.message.value)
            ):
                outcome.duplicates += 1
                outcome.dead_again += found is Taken.CONFLICT
                poison = None
            elif poison is not None:
                outcome.dead.append((entry, poison))
            else:
                outcome.booked.append(entry)
            outcome.fates.append(poison is not None)
        return outcome

    def _settle_requests(self, connection: Connection, booked: Sequence[Entry]) -> None:
        rows = [
            settlement_row(each.event) for each in booked if isinstance(each.event, Usage | Error)
        ]
        added = self._store.add_settlements(connection, rows)
        if len(added) == len(rows):
            return
        for entry in booked:
            if isinstance(entry.event, Usage | Error) and entry.event_id not in added:
                entry.poison = Poison(Reason.HASH_CONFLICT, "the request has a terminal already")
        raise Refused

    def _settle_leases(self, connection: Connection, outcome: Outcome) -> None:
        counted = sorted(
            [each for each in outcome.booked if isinstance(each.event, Request | Usage | Error)]
            + [each for each, poison in outcome.dead if _counts(each, poison)],
            key=lambda each: each.message.offset,
        )
        ended = [each for each in outcome.booked if isinstance(each.event, LeaseClosed)]
        try:
            self._budgets.settle(
                connection, [_charge(each) for each in counted], [_end(each) for each in ended]
            )
        except SettleRefused as ex:
            for entries, refused in ((counted, ex.charges), (ended, ex.ends)):
                for place, word in refused.items():
                    entry = entries[place]
                    entry.counts = False
                    if entry.poison is None:
                        entry.poison = Poison(_REFUSALS[word], f"{word}: {_lease_id(entry)}")
            raise Refused from ex


def _counts(entry: Entry, poison: Poison) -> bool:
    return (
        entry.counts
        and poison.reason is not Reason.HASH_CONFLICT
        and isinstance(entry.event, Request | Error)
        and bool(entry.event.lease_id)
    )


def _lease_id(entry: Entry) -> str:
    return entry.event.lease_id if entry.event is not None else ""


def _charge(entry: Entry) -> Charge:
    assert entry.event is not None
    charged_nano = entry.event.charged_nano if isinstance(entry.event, Usage) else 0
    return Charge(entry.event.lease_id, charged_nano, occurred_at=entry.event.occurred_at)


def _end(entry: Entry) -> LeaseEnd:
    assert isinstance(entry.event, LeaseClosed)
    return LeaseEnd(entry.event.lease_id, entry.event.events)


def settlement_row(event: Usage | Error) -> ledger.SettlementRow:
    """What `settlement` holds of a terminal."""
    return ledger.SettlementRow(
        request_id=event.request_id,
        event_id=event.event_id,
        account_id=event.account_id,
        key_id=event.key_id,
        charged_nano=event.charged_nano if isinstance(event, Usage) else 0,
        cost_nano=event.cost_nano if isinstance(event, Usage) else 0,
        provider_cost_nano=event.provider_cost_nano,
        outcome=event.outcome.value,
        occurred_at=event.occurred_at,
    )


def _book_entries(outcome: Outcome) -> list[ledger.Entry]:
    """The postings of what was booked, and of late ends: they are our loss, not the customer's."""
    entries = []
    for each in outcome.booked:
        assert each.event is not None
        postings = postings_for(each.event)
        if postings:
            entries.append(ledger.Entry(each.event_id, each.event.occurred_at, postings))
    for each, poison in outcome.dead:
        if poison.reason is Reason.LATE and isinstance(each.event, Usage | Error):
            postings = postings_for(each.event, customer_pays=False)
            entries.append(ledger.Entry(each.event_id, each.event.occurred_at, postings))
    return entries


def _dead_row(entry: Entry, poison: Poison) -> ledger.DeadRow:
    return ledger.DeadRow(
        offset=entry.message.offset,
        event_id=entry.event_id,
        account_id=entry.message.key,
        reason=poison.reason,
        detail=poison.detail,
        body=entry.message.value,
    )
