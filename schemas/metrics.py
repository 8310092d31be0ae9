"""Every metric by name, once: what /metrics shows and what dashboards may rely on."""

from typing import Final, Literal, NamedTuple


class Metric(NamedTuple):
    """`kind` gauge is summed over living processes. `buckets` are the unit's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "gauge_max", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_SHORT_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)

METRICS: Final = (
    # edge
    Metric("tollgate_requests_total", "counter", "Requests ended", ("dialect", "outcome", "code")),
    Metric("tollgate_in_flight", "gauge", "Requests between admission and their end", ()),
    Metric("tollgate_first_byte_seconds", "histogram", "Time to first byte",
           ("dialect",), _SECONDS),
    Metric("tollgate_overhead_seconds", "histogram", "Time added before the upstream call", (),
           _SHORT_SECONDS),
    Metric("tollgate_attempts_total", "counter", "Upstream calls", ("channel", "result")),
    Metric("tollgate_charged_nano_total", "counter", "Nano-USD charged at the edge", ()),
    Metric("tollgate_written_off_nano_total", "counter", "Nano-USD used beyond a hold", ()),
    Metric("tollgate_refusals_total", "counter", "Requests refused", ("code",)),
    Metric("tollgate_reserved_nano", "gauge", "Nano-USD held by requests in flight", ()),
    Metric("tollgate_lease_nano", "gauge", "Nano-USD in leases of workers", ()),
    Metric("tollgate_grants_total", "counter", "Grants asked of the centre", ("result",)),
    Metric("tollgate_recalls_total", "counter", "Recall marks answered", ()),
    Metric("tollgate_catalog_age_seconds", "gauge_max", "Age of the catalog snapshot", ()),
    # outbox and relay
    Metric("tollgate_outbox_appends_total", "counter", "Events written to an outbox", ("kind",)),
    Metric("tollgate_outbox_errors_total", "counter", "Failed appends and syncs", ("reason",)),
    Metric("tollgate_outbox_sync_seconds", "histogram", "Time of one fsync", (), _SHORT_SECONDS),
    Metric("tollgate_outbox_bytes", "gauge_max", "Bytes of the outbox folder", ()),
    Metric("tollgate_relay_events_total", "counter", "Events sent to the bus", ()),
    Metric("tollgate_relay_lag_seconds", "gauge_max", "Age of the oldest event not yet sent", ()),
    Metric("tollgate_relay_resends_total", "counter", "Batches sent again after a failure", ()),
    Metric("tollgate_reaped_total", "counter", "Requests of dead workers closed as free", ()),
    # sinks
    Metric("tollgate_ledger_events_total", "counter", "Events applied", ("kind", "result")),
    Metric("tollgate_ledger_lag_events", "gauge_max", "Events on the bus not yet applied", ()),
    Metric("tollgate_ledger_batch_seconds", "histogram", "Time of one ledger transaction", (),
           _SECONDS),
    Metric("tollgate_dead_events_total", "counter", "Events set aside", ("reason",)),
    Metric("tollgate_clickhouse_rows_total", "counter", "Rows inserted", ()),
    Metric("tollgate_clickhouse_lag_events", "gauge_max", "Events not yet inserted", ()),
    Metric("tollgate_clickhouse_errors_total", "counter", "Failed inserts", ("reason",)),
    Metric("tollgate_bus_errors_total", "counter", "Bus calls that failed", ("operation",)),
    Metric("tollgate_queries_total", "counter", "Queries answered", ("route", "status")),
    Metric("tollgate_halted", "gauge_max", "1 when a role stopped itself for safety", ("role",)),
)  # fmt: skip
