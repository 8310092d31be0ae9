"""Compares outbox, bus, ledger and ClickHouse up to a watermark: by worker, by range of offsets, by
account and hour, and down to the event.

The watermark is what the outboxes and the log held at the start; relay and sinks get some time to
pass it. Reads only, beside everything that runs, in memory that does not grow with the log.
"""

import contextlib
from collections.abc import Iterator

from schemas.config import Config
from schemas.events import TOPIC
from services.backends import settings
from services.backends.bus.port import Bus, BusUnavailable
from services.backends.clickhouse.client import ClickHouseUnavailable, QueryRefused
from services.backends.query_client import QueryClient, QueryFailed, QueryUnavailable
from services.backends.sql import revision
from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.ledger import LedgerStore
from services.backends.sql.plans import Plans
from services.meter.bootstrap import open_bus, open_database
from services.meter.reconcile_analytics import AnalyticsPass, Ask
from services.meter.reconcile_hours import HoursPass
from services.meter.reconcile_log import LogPass
from services.meter.reconcile_report import NOT_CAUGHT_UP, Report
from services.meter.reconcile_wait import NotCaughtUp, RelayState, Waiter, Watermark, relay_state


def reconcile(config: Config, wait_s: float = 30.0) -> Report:
    """Never raises for a part that is away: the report then says that it is not caught up."""
    engine = open_database(config)
    folder = settings.under(config, config.outbox.path)
    try:
        revision.require(engine)
        with contextlib.closing(open_bus(config)) as bus:
            audit = BooksAudit(engine)
            waiter = Waiter(folder, bus, TOPIC, audit, LedgerStore(engine), Plans(engine))
            mark = waiter.wait(wait_s)
            with _analytics(config) as ask:
                return _Run(bus, audit, ask, mark, relay_state(folder)).report
    except NotCaughtUp as ex:
        return Report(exit_code=NOT_CAUGHT_UP, lagging=ex.lagging)
    except (ClickHouseUnavailable, QueryUnavailable, QueryRefused, QueryFailed) as ex:
        return Report(exit_code=NOT_CAUGHT_UP, lagging=[f"clickhouse: {ex}"])
    except (DatabaseUnavailable, revision.SchemaTooOld) as ex:
        return Report(exit_code=NOT_CAUGHT_UP, lagging=[f"database: {ex}"])
    except BusUnavailable as ex:
        return Report(exit_code=NOT_CAUGHT_UP, lagging=[f"bus: {ex}"])
    finally:
        engine.dispose()


@contextlib.contextmanager
def _analytics(config: Config) -> Iterator[Ask]:
    """Questions go to the process that has the embedded engine open; when none runs, or for a
    server, it is opened here."""
    from services.backends.clickhouse.embedded import EngineBusy
    from services.backends.clickhouse.store import open_store

    if config.clickhouse.dsn.startswith("chdb:"):
        client = QueryClient(config)
        try:
            client.health()
        except QueryUnavailable:
            pass
        else:
            yield lambda sql: list(client.sql(sql)["rows"])
            return
    try:
        store = open_store(config)
    except EngineBusy as ex:
        raise ClickHouseUnavailable(str(ex)) from ex
    try:
        yield lambda sql: list(store.clickhouse.select(sql).rows)
    finally:
        store.close()


class _Run:
    """One comparison."""

    def __init__(
        self, bus: Bus, audit: BooksAudit, ask: Ask, mark: Watermark, relay: RelayState
    ) -> None:
        self.report = Report()
        self._bus = bus
        self._audit = audit
        self._mark = mark
        self._relay = relay
        self._log = LogPass(bus, TOPIC, audit, self.report)
        self._analytics = AnalyticsPass(ask, TOPIC, self.report)
        hours = HoursPass(audit, ask, TOPIC, self.report)
        for partition, (first, end) in sorted(mark.bus.items()):
            for original in self._log.run(partition, first, end):
                self._analytics.expect(original)
                hours.expect(original)
            hours.compare(partition, first, end)
            self._analytics.compare(partition, first, end, self._log.originals)
        self._check_strays()
        self._check_sequences()
        self._check_open_requests()
        self._check_books()

    def _check_strays(self) -> None:
        """Rows that no event of the log explains. Those of events that came meanwhile are fine."""
        strays = self._analytics.strays(self._mark.bus)
        if not strays:
            return
        bounds = self._bus.bounds(TOPIC)
        for event_id, (topic, partition, offset) in strays.items():
            if topic != TOPIC or offset >= bounds.get(partition, (0, 0))[1]:
                self.report.differ("log-clickhouse", event_id, "only in ClickHouse")

    def _check_sequences(self) -> None:
        sequences = self._log.sequences
        self.report.incarnations = len(sequences)
        if any(first > 0 for first, _ in self._mark.bus.values()):
            self.report.notes.append("the log has lost its beginning: no check for gaps")
            return
        for incarnation, seq in self._relay.dead:
            sequences.note(incarnation, seq)
        if sequences.missing(self._mark.outbox):
            # The ends of the partitions were not read at one instant: what was under way between
            # the first and the last of them is in the log by now.
            for partition, (_, end) in self._bus.bounds(TOPIC).items():
                self._log.look_further(partition, self._mark.bus[partition][1], end)
        for incarnation, seqs in sequences.missing(self._mark.outbox).items():
            for seq in seqs:
                self.report.differ("outbox-bus", f"{incarnation}:{seq}", "not in the log")
        for incarnation, seq in sequences.beyond_end().items():
            self.report.differ("outbox-bus", f"{incarnation}:{seq}", "after its last event")

    def _check_open_requests(self) -> None:
        """A request without a terminal is in flight while its worker lives."""
        left = list(self._log.open_requests.values())
        self.report.in_flight = len(left)
        closed = [each for each in left if self._log.sequences.closed(each.incarnation)]
        for at in range(0, len(closed), 1000):
            part = closed[at : at + 1000]
            settled = self._audit.chunk([], [each.request_id for each in part], []).settlements
            for each in part:
                if each.request_id not in settled:
                    self.report.in_flight -= 1
                    self.report.differ("log", each.event_id, "a request without an end")

    def _check_books(self) -> None:
        for finding in self._audit.findings(self._mark.movements):
            self.report.differ(*finding)
        self.report.trial_balance_nano = self._audit.trial_balance_nano()
        if self.report.trial_balance_nano:
            self.report.differ("postings", "trial balance", str(self.report.trial_balance_nano))
