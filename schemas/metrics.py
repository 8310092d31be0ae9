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
_LONG_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_ROWS: Final = (1.0, 10.0, 100.0, 500.0, 1000.0, 2000.0, 5000.0, 20_000.0, 100_000.0)
_RATIOS: Final = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)

METRICS: Final = (
    # edge
    Metric("tollgate_requests_total", "counter", "Admitted requests that ended",
           ("dialect", "outcome", "code")),
    Metric("tollgate_refusals_total", "counter", "Requests refused", ("code",)),
    Metric("tollgate_attempts_total", "counter", "Upstream calls by HTTP status; 0: no answer",
           ("channel", "result")),
    Metric("tollgate_in_flight", "gauge", "Requests being served"),
    Metric("tollgate_first_byte_seconds", "histogram", "Time to the first byte of the answer",
           ("dialect",), _SECONDS),
    Metric("tollgate_overhead_seconds", "histogram", "From a request's head to its upstream call",
           (), _SHORT_SECONDS),
    Metric("tollgate_charged_nano_total", "counter", "Nano-USD charged"),
    Metric("tollgate_written_off_nano_total", "counter", "Nano-USD used beyond a hold"),
    Metric("tollgate_reserved_nano", "gauge", "Nano-USD held by requests in flight"),
    Metric("tollgate_catalog_age_seconds", "gauge_max", "Since the catalog was last confirmed"),
    # quota
    Metric("tollgate_lease_grants_total", "counter", "Answers to a worker's call for money",
           ("result",)),
    Metric("tollgate_lease_recalls_total", "counter", "Leases that another worker waited for"),
    Metric("tollgate_rate_rounds_total", "counter",
           "Calls for requests per minute and concurrency", ("result",)),
    Metric("tollgate_quota_denied_total", "counter", "Requests refused by a limit",
           ("reason",)),
    Metric("tollgate_quota_worst_case_exceeded_total", "counter",
           "Answers that cost more than the worst case computed for their request"),
    Metric("tollgate_reserve_to_actual_ratio", "histogram", "Hold of a billed request / charge",
           (), _RATIOS),
    Metric("tollgate_quota_leased_nano", "gauge_max", "Nano-USD in leases, not settled yet"),
    Metric("tollgate_quota_stranded_nano", "gauge_max", "What ended workers left of it"),
    Metric("tollgate_lease_expired_unresolved", "gauge_max",
           "Leases of ended workers that wait for events"),
    Metric("tollgate_lease_expired_age_seconds", "gauge_max",
           "Since the first of these workers ended"),
    # batch
    Metric("tollgate_job_steps_total", "counter", "Steps of media jobs begun", ("phase",)),
    Metric("tollgate_batch_lines_total", "counter", "Lines of batches with a result", ("state",)),
    Metric("tollgate_unknown_state_total", "counter",
           "Upstream status words that no adapter knows", ("provider",)),
    # outbox
    Metric("tollgate_outbox_append_seconds", "histogram",
           "Time of one append transaction; one of 64 is measured", (), _SHORT_SECONDS),
    Metric("tollgate_outbox_fsync_errors_total", "counter", "Failed fsyncs; each ends its worker"),
    Metric("tollgate_outbox_bytes", "gauge_max", "Bytes of the outbox folder, without ballast"),
    Metric("tollgate_outbox_records_unshipped", "gauge_max", "Durable events not on the bus yet"),
    Metric("tollgate_outbox_oldest_unshipped_age_seconds", "gauge_max",
           "Age of the oldest event that was read and is not on the bus"),
    Metric("tollgate_outbox_corrupt_total", "counter",
           "Rows with a wrong checksum, and failed tries to read a damaged file", ("what",)),
    Metric("tollgate_outbox_orphan_files", "gauge_max", "Files that wait for a person"),
    Metric("tollgate_outbox_seq_gap_total", "counter", "Events that are missing between others"),
    # relay
    Metric("tollgate_ship_records_total", "counter", "Events that the bus acknowledged"),
    Metric("tollgate_ship_inflight_records", "gauge_max", "Events sent and not acknowledged"),
    Metric("tollgate_ship_inflight_bytes", "gauge_max", "Their bytes"),
    Metric("tollgate_ship_oldest_inflight_age_seconds", "gauge_max",
           "Since the unacknowledged batch was first sent"),
    Metric("tollgate_ship_ack_seconds", "histogram", "From sending a batch to its acknowledgement",
           (), _SECONDS),
    Metric("tollgate_ship_errors_total", "counter", "Batches or events not sent", ("reason",)),
    Metric("tollgate_ship_resent_total", "counter", "Events sent again because it was unknown "
           "whether the bus had them"),
    Metric("tollgate_ship_producer_rebuilds_total", "counter", "Kafka producers replaced"),
    Metric("tollgate_reaped_total", "counter", "Requests of dead workers closed as free"),
    Metric("tollgate_incarnations_lost_total", "counter",
           "Workers declared lost because their host did not come back"),
    Metric("tollgate_reap_errors_total", "counter", "Dead workers that could not be closed yet"),
    # consumers
    Metric("tollgate_consumer_lag_records", "gauge_max", "Events on the bus, not stored yet",
           ("group", "partition")),
    Metric("tollgate_consumer_lag_seconds", "gauge_max", "Age of the oldest event fetched, "
           "not stored yet", ("group", "partition")),
    Metric("tollgate_batch_rows", "histogram", "Events of one batch", ("group",), _ROWS),
    Metric("tollgate_batch_seconds", "histogram", "Time of one step of a batch",
           ("group", "stage"), _SECONDS),
    Metric("tollgate_rebalances_total", "counter", "Assignments of partitions", ("group",)),
    Metric("tollgate_paused", "gauge", "Partitions of which no more is taken",
           ("group", "reason")),
    Metric("tollgate_poll_gap_seconds", "gauge_max", "Since the bus was last polled", ("group",)),
    Metric("tollgate_zombie_refused_total", "counter", "Batches of a member that was replaced",
           ("group",)),
    Metric("tollgate_commit_failed_total", "counter",
           "Batches that were not stored, or unknown to be; they are tried again", ("group",)),
    Metric("tollgate_loop_failures_total", "counter", "Roles that stopped by an error", ("loop",)),
    # ledger
    Metric("tollgate_ledger_applied_total", "counter", "Events booked", ("kind",)),
    Metric("tollgate_ledger_duplicate_total", "counter", "Events met again", ("cause",)),
    Metric("tollgate_ledger_conflict_total", "counter",
           "Events whose id or request was booked with other content"),
    Metric("tollgate_posting_latency_seconds", "histogram", "From a request's end to its posting",
           (), _LONG_SECONDS),
    Metric("tollgate_trial_balance_nano", "gauge_max", "Sum of all balances, nano-USD: 0"),
    Metric("tollgate_dead_events", "gauge_max", "Events set aside and not repaired", ("reason",)),
    Metric("tollgate_suspense_nano", "gauge_max", "Nano-USD that dead events would charge"),
    # ClickHouse
    Metric("tollgate_ch_insert_seconds", "histogram", "Time of one insert", (), _SECONDS),
    Metric("tollgate_ch_rows_total", "counter", "Rows inserted"),
    Metric("tollgate_ch_retry_total", "counter", "Batches to be tried again", ("reason",)),
    Metric("tollgate_ch_dedup_dropped_total", "counter",
           "Events not inserted because the tables hold them"),
    Metric("tollgate_ch_open_plan_age_seconds", "gauge_max",
           "Age of the oldest plan that is not confirmed"),
    Metric("tollgate_ch_parts_active", "gauge_max", "Active parts", ("table",)),
    Metric("tollgate_queries_total", "counter", "Queries answered", ("route", "status")),
    # reconciliation
    Metric("tollgate_recon_mismatch_total", "counter", "Differences found", ("pair",)),
    Metric("tollgate_recon_watermark_age_seconds", "gauge_max",
           "Since the moment up to which all parts were last compared"),
)  # fmt: skip
