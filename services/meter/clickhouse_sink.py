"""Log -> ClickHouse: plan, insert, confirm; every booked terminal's row once, whatever dies when.

A range of the log is *planned* (stored in SQL as OPEN with the hash of its rows), *inserted* under
a token made of the range and the hash, and *confirmed* (DONE, with the position, in one
transaction). An OPEN plan is never cut anew: after any crash or unknown result exactly its range
is read again, must give the same hash, and is inserted under the same token until acknowledged, so
ClickHouse stores it once. Events that the log holds twice are found by a look-up before the plan
(`resends` tells which can be such); the plan keeps what was found, for a look-up after a first try
would find the try's own rows, and what the ledger had set aside, for that may be booked meanwhile.

ClickHouse down means TryLater: positions stay, the log keeps what is not inserted.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from schemas.events import TOPIC
from services.backends.bus.port import Bus, BusUnavailable, Message, OffsetOutOfRange
from services.backends.clickhouse.client import ClickHouseUnavailable, QueryRefused
from services.backends.clickhouse.rows import Stored
from services.backends.clickhouse.store import RequestStore
from services.backends.lifecycle import crash_point
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.plans import Claim, Plan, Plans
from services.backends.telemetry import get_logger, metric
from services.meter.booked import Fates, Terminal, terminals
from services.meter.consumer import Halt, NotOwner, Position, TryLater
from services.meter.dead import event_id_of
from services.meter.resends import Resends

_TABLE_EPOCH: Final = 1
_HASH_IN_TOKEN: Final = 16
_BOOKS_WAIT_S: Final = 1.0
_BOOKS_POLL_S: Final = 0.02


class Books(Protocol):
    """What the sink asks of the ledger: `services.meter.booked.Booked`."""

    def reached(self, partition: int) -> int: ...

    def fates(self, partition: int, messages: Sequence[Message]) -> Fates: ...


class _Cut(NamedTuple):
    """A plan and the rows of its range."""

    plan: Plan
    rows: list[Stored]

    @classmethod
    def of(cls, plan: Plan, found: list[Terminal]) -> "_Cut":
        return cls(plan, [each.row for each in found])


class _Partition:
    """What this owner knows of a partition: at most one plan under way."""

    def __init__(self, claim: Claim) -> None:
        self.epoch = claim.owner_epoch
        self.next_offset = claim.next_offset
        self.left_open = claim.open_plan  # its rows must be read again
        self.cut: _Cut | None = None  # OPEN and not yet DONE
        self.doubtful = False  # a commit's result is unknown: the database must be asked
        self.resends = Resends()


class ClickHouseSink:
    """A `Sink` of the consumer; one instance per consumer, used by one thread."""

    group = "clickhouse"

    def __init__(
        self, store: RequestStore, plans: Plans, bus: Bus, booked: Books, *, topic: str = TOPIC
    ) -> None:
        self._store = store
        self._plans = plans
        self._bus = bus
        self._booked = booked
        self._topic = topic
        self._owned: dict[int, _Partition] = {}
        self._log = get_logger().bind(sink=self.group)

    def claim(self, partition: int) -> Position:
        """Fences every earlier owner. The position of a plan left open is its first offset, so
        its messages come at once and `handle` finishes it first."""
        try:
            claim = self._plans.claim(self._topic, partition)
        except DatabaseUnavailable as ex:
            raise TryLater(str(ex)) from ex
        self._owned[partition] = _Partition(claim)
        if claim.open_plan is not None:
            self._log.info("open_plan_found", partition=partition, last=claim.open_plan.last)
        return Position(claim.next_offset, claim.last_event_id)

    def handle(self, partition: int, messages: list[Message]) -> None:
        if partition not in self._owned:
            raise NotOwner(f"partition {partition} is not claimed")
        if self._owned[partition].doubtful:
            self.claim(partition)
        owned = self._owned[partition]
        try:
            self._handle(owned, partition, messages)
        except (ClickHouseUnavailable, QueryRefused) as ex:
            # A refused insert is no reason to skip rows: it stays planned until the cause is gone.
            reason = "unavailable" if isinstance(ex, ClickHouseUnavailable) else "refused"
            metric("tollgate_ch_retry_total").labels(reason).inc()
            raise TryLater(str(ex)) from ex
        except DatabaseUnavailable as ex:
            owned.doubtful = True
            raise TryLater(str(ex)) from ex
        except BusUnavailable as ex:
            raise TryLater(str(ex)) from ex

    def release(self, partition: int) -> None:
        """Forgets the partition; a plan under way stays OPEN for the next owner."""
        self._owned.pop(partition, None)

    # -- the three steps ---------------------------------------------------------------------

    def _handle(self, owned: _Partition, partition: int, messages: list[Message]) -> None:
        if owned.left_open is not None:
            owned.cut, owned.left_open = self._cut_again(owned.left_open), None
        if owned.cut is not None:
            self._insert(owned, owned.cut)
        while fresh := [m for m in messages if m.offset >= owned.next_offset]:
            fresh = self._wait_for_books(partition, fresh)
            started_s = time.monotonic()
            cut = self._cut(owned, partition, fresh)
            started_s = self._stage("cut", started_s)
            crash_point("clickhouse.before_plan")
            if not self._plans.open(cut.plan, owned.epoch):
                raise NotOwner(f"partition {partition}: a later owner claimed it")
            owned.cut = cut
            self._stage("plan", started_s)
            metric("tollgate_ch_dedup_dropped_total").inc(len(cut.plan.dropped))
            crash_point("clickhouse.planned")
            self._insert(owned, cut)

    def _wait_for_books(self, partition: int, fresh: list[Message]) -> list[Message]:
        """Those of `fresh` that the ledger has taken, at least one. Raises TryLater."""
        deadline_s = time.monotonic() + _BOOKS_WAIT_S
        while True:
            reached = self._booked.reached(partition)
            if fresh[-1].offset < reached:
                return fresh
            if time.monotonic() >= deadline_s:
                taken = [message for message in fresh if message.offset < reached]
                if taken:
                    return taken
                raise TryLater(f"the ledger is at offset {reached} of partition {partition}")
            time.sleep(_BOOKS_POLL_S)

    def _insert(self, owned: _Partition, cut: _Cut) -> None:
        """Brings an open plan to DONE; may be repeated until it succeeds."""
        plan = cut.plan
        started_s = time.monotonic()
        self._store.insert(plan.topic, plan.partition, cut.rows, token(plan))
        now_s = time.monotonic()
        metric("tollgate_ch_insert_seconds").observe(now_s - started_s)
        crash_point("clickhouse.acked")
        if not self._plans.done(plan, owned.epoch):
            raise NotOwner(f"partition {plan.partition}: a later owner claimed it")
        self._stage("confirm", now_s)
        crash_point("clickhouse.done")
        owned.next_offset = plan.last + 1
        owned.cut = None
        metric("tollgate_ch_rows_total").inc(len(cut.rows))

    def _stage(self, stage: str, started_s: float) -> float:
        """Notes a step that is over; returns the time."""
        now_s = time.monotonic()
        metric("tollgate_batch_seconds").labels(self.group, stage).observe(now_s - started_s)
        return now_s

    def _cut(self, owned: _Partition, partition: int, messages: list[Message]) -> _Cut:
        """A new range from the position on, without the events that the tables hold already.
        Unless it is planned next, the partition must be claimed again."""
        fates = self._booked.fates(partition, messages)
        found = terminals(messages, fates)
        rows = [each.row for each in found]
        stored = self._store.stored_event_ids(owned.resends.possible(rows))
        owned.resends.planned(rows, stored)
        if stored:
            found = [each for each in found if each.row.event.event_id not in stored]
        plan = Plan(
            topic=self._topic,
            partition=partition,
            first=owned.next_offset,
            last=messages[-1].offset,
            last_event_id=event_id_of(messages[-1].value),
            n_rows=len(found),
            dropped=(*sorted(stored), *sorted(fates.set_aside)),
            sha256=_sha256(found),
            table_epoch=_TABLE_EPOCH,
        )
        return _Cut.of(plan, found)

    def _cut_again(self, plan: Plan) -> _Cut:
        """The rows of a plan that an earlier owner left open. Raises Halt when the log's range
        does not give what was planned: its token may be in use, so inserting could lose rows."""
        at = f"{self.group}: {plan.topic}/{plan.partition} {plan.first}-{plan.last}"
        try:
            messages = list(self._bus.read(plan.topic, plan.partition, plan.first, plan.last))
        except OffsetOutOfRange as ex:
            raise Halt(f"{at}: an open plan's range is no longer in the log: {ex}") from ex
        dropped = [each for each in plan.dropped if isinstance(each, str)]
        set_aside = frozenset(each for each in plan.dropped if isinstance(each, int))
        fates = self._booked.fates(plan.partition, messages)._replace(set_aside=set_aside)
        found = terminals(messages, fates, dropped)
        if len(found) != plan.n_rows or _sha256(found) != plan.sha256:
            raise Halt(f"{at}: the log holds other events there than were planned")
        return _Cut.of(plan, found)


def token(plan: Plan) -> str:
    """The name of a plan's inserts: the same for the same rows, never for others. A log made anew
    reuses its offsets, so the hash is part of it."""
    return f"{plan.topic}:{plan.partition}:{plan.first}-{plan.last}:{plan.sha256[:_HASH_IN_TOKEN]}"


def _sha256(found: list[Terminal]) -> str:
    """Of the rows' offsets and bytes, in order."""
    digest = hashlib.sha256()
    for message, row in found:
        digest.update(b"%d:%d:" % (row.place.offset, len(message.value)))
        digest.update(message.value)
    return digest.hexdigest()
