"""The terminals of a period as the ledger took them: read from the log, each once, none dead."""

from collections.abc import Iterator

from sqlalchemy import Engine

from schemas.events import TOPIC, Error, Usage
from services.backends.bus.port import Bus
from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.ledger import LedgerStore
from services.meter.reconcile_log import LogPass
from services.meter.reconcile_report import Report


def settled_events(
    bus: Bus, engine: Engine, since: int | None, until: int | None, topic: str = TOPIC
) -> Iterator[Usage | Error]:
    """Those with `since` <= occurred_at < `until` (microseconds, None: open), partition by
    partition, up to where the ledger is. Raises BusUnavailable, DatabaseUnavailable."""
    log = LogPass(bus, topic, BooksAudit(engine), Report())
    positions = LedgerStore(engine).positions(topic)
    for partition, (first, end) in sorted(bus.bounds(topic).items()):
        taken = min(end, positions[partition].next_offset) if partition in positions else first
        for original in log.originals(partition, first, taken):
            event = original.read.event
            if (
                not original.dead
                and isinstance(event, Usage | Error)
                and (since is None or event.occurred_at >= since)
                and (until is None or event.occurred_at < until)
            ):
                yield event
