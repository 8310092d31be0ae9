"""`/metrics` of a running installation: what must move moves, under the declared names, and no
label holds what there may be millions of."""

import re
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas.errors import Code, Outcome
from schemas.metrics import METRICS
from services.meter.dead import Reason
from tests.parts.feature import wait_until
from tests.parts.stack import DIALECTS
from tests.parts.wire import PATHS, post

TAILS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
STAGES = {
    "ledger": {"fill", "read", "book"},
    "clickhouse": {"fill", "cut", "plan", "confirm"},
}

# What one answer, one refusal and one failure must move: name, labels that are given.
MOVED = [
    ("requests_total", {"outcome": "completed"}),
    ("requests_total", {"outcome": "failed", "code": "upstream_error"}),
    ("refusals_total", {"code": "invalid_api_key"}),
    ("refusals_total", {"code": "quota_exceeded"}),
    ("refusals_total", {"code": "insufficient_balance"}),
    ("attempts_total", {"channel": "main-chat", "result": "200"}),
    ("attempts_total", {"channel": "f-error-400-anthropic", "result": "400"}),
    ("first_byte_seconds_count", {}),
    ("overhead_seconds_count", {}),
    ("charged_nano_total", {}),
    ("written_off_nano_total", {}),
    ("lease_grants_total", {"result": "granted"}),
    ("lease_grants_total", {"result": "shortfall"}),
    ("quota_denied_total", {"reason": "quota_exceeded"}),
    ("quota_denied_total", {"reason": "insufficient_balance"}),
    ("quota_worst_case_exceeded_total", {}),
    ("reserve_to_actual_ratio_count", {}),
    ("ship_records_total", {}),
    ("ship_ack_seconds_count", {}),
    ("batch_rows_count", {"group": "ledger"}),
    ("batch_rows_count", {"group": "clickhouse"}),
    *(
        ("batch_seconds_count", {"group": group, "stage": stage})
        for group, stages in STAGES.items()
        for stage in sorted(stages)
    ),
    ("ledger_applied_total", {"kind": "request"}),
    ("ledger_applied_total", {"kind": "usage"}),
    ("ledger_applied_total", {"kind": "error"}),
    ("posting_latency_seconds_count", {}),
    ("ch_insert_seconds_count", {}),
    ("ch_rows_total", {}),
    ("queries_total", {"status": "200"}),
]
# What was recorded since the start, however little this test adds.
RECORDED = [
    ("outbox_append_seconds_count", {}),
    ("rebalances_total", {"group": "ledger"}),
    ("rebalances_total", {"group": "clickhouse"}),
    ("outbox_bytes", {}),
    ("ch_parts_active", {"table": "requests"}),
    ("recon_watermark_age_seconds", {}),
]
NOTHING = [
    "trial_balance_nano",
    "outbox_fsync_errors_total",
    "outbox_corrupt_total",
    "outbox_seq_gap_total",
    "outbox_orphan_files",
    "ledger_conflict_total",
    "recon_mismatch_total",
]
CALM = {"outbox_records_unshipped": 0, "ship_inflight_records": 0, "ship_inflight_bytes": 0}


def read(stack) -> dict[tuple[str, frozenset], float]:
    """The samples, by name and labels."""
    with urllib.request.urlopen(f"{stack.base_url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read_settled(stack) -> dict[tuple[str, frozenset], float]:
    """The samples, once what earlier tests sent is in them: workers write theirs each second."""
    seen: list[dict] = [read(stack)]

    def still() -> bool:
        time.sleep(2.5)
        seen.append(read(stack))
        return total(seen[-1], "requests_total") == total(seen[-2], "requests_total")

    wait_until(still, 60.0, lambda: "requests still end")
    return seen[-1]


def total(samples, name: str, labels: dict[str, str] | None = None) -> float:
    """The sum of the samples of a name that have these labels."""
    wanted = (labels or {}).items()
    return sum(
        value
        for (found, has), value in samples.items()
        if found == f"tollgate_{name}" and wanted <= dict(has).items()
    )


SERVED = 9  # rows of the account, and as many requests that were admitted


def served(stack) -> str:
    """Traffic of every ending; the key of it."""
    account = stack.new_account()
    key = stack.new_key(account=account)
    for dialect in PATHS:
        for stream in (True, False):
            assert post(stack, dialect, key, stream=stream).status == 200
    for group, status in (("fault-error-400", 400), ("fault-huge-usage", 200)):
        other = stack.new_key(group, account=account)
        reply = post(stack, "anthropic", other, stream=False)
        reply.body()
        assert reply.status == status
    poor = stack.new_key("fault-huge-usage", account=stack.new_account("0.005"))
    assert post(stack, "anthropic", poor, stream=False).status == 200
    assert post(stack, "chat", "sk-toll-" + "x" * 43, stream=False).status == 401
    quota = stack.new_key(account=account, quota="0.000001")
    assert post(stack, "chat", quota, stream=True).status == 402
    assert post(stack, "chat", stack.new_key(usd="0"), stream=True).status == 402
    stack.wait_for_rows(SERVED, key)
    return key


@pytest.fixture(scope="module")
def readings(stack):
    """Before and after the traffic."""
    before = read_settled(stack)
    served(stack)
    stack.cli("reconcile")  # leaves its trace
    after: dict = {}

    def seen() -> bool:  # workers write each second, gauges are refreshed each ten
        after.clear()
        after.update(read(stack))
        return not missing(before, after) and more(before, after) >= SERVED

    wait_until(seen, 60.0, lambda: f"not moved: {missing(before, after)}")
    return before, after


def more(before, after) -> float:
    return total(after, "requests_total") - total(before, "requests_total")


def missing(before, after) -> list:
    still = [each for each in MOVED if not total(after, *each) > total(before, *each)]
    return still + [each for each in RECORDED if not total(after, *each) > 0]


def test_what_must_move_has_moved(readings):
    before, after = readings
    assert missing(before, after) == []
    assert more(before, after) == SERVED  # each once, whatever worker served it
    denied = ("quota_denied_total", {"reason": "quota_exceeded"})
    assert total(after, *denied) - total(before, *denied) == 1


def test_what_must_not_move_has_not(readings, stack):
    _, after = readings
    for name in NOTHING:
        assert total(after, name) == 0, name
    # Gauges are refreshed each ten seconds.
    wait_until(lambda: {name: total(read(stack), name) for name in CALM} == CALM, 60.0)
    assert total(read(stack), "outbox_oldest_unshipped_age_seconds") < 10


def test_every_partition_of_every_group_has_its_lag(readings):
    _, after = readings
    for name in ("tollgate_consumer_lag_records", "tollgate_consumer_lag_seconds"):
        found = {(dict(has)["group"], dict(has)["partition"]) for n, has in after if n == name}
        assert found == {(group, str(p)) for group in STAGES for p in range(6)}, name
    for group in STAGES:
        assert total(after, "poll_gap_seconds", {"group": group}) < 10


def test_names_and_labels_are_the_declared_ones(readings):
    _, after = readings
    declared = {
        metric.name + tail: set(metric.labels) | ({"le"} if tail == "_bucket" else set())
        for metric in METRICS
        for tail in TAILS[metric.kind.removesuffix("_max")]
    }
    for name, labels in after:
        assert name in declared, name
        assert {label for label, _ in labels} == declared[name], name


def test_labels_are_closed_lists(readings, stack):
    _, after = readings
    channels = set(re.findall(r'^name = "(.+)"', stack.config_file.read_text(), re.MULTILINE))
    allowed = {
        "dialect": set(DIALECTS),
        "outcome": set(Outcome),
        "code": {"", *Code},
        "channel": channels,
        "group": set(STAGES),
        "stage": set.union(*STAGES.values()),
        "table": {"requests", "attempts", "schema_versions"},
        "result": {*map(str, range(600)), "granted", "shortfall", "refused", "unavailable"},
    }
    for name, labels in after:
        for label, value in labels:
            if label in allowed:
                assert value in allowed[label], (name, label, value)
            assert not re.search(r"acct_|(key|lease)_[0-9a-f]{8}|edge-|sk-|claude-|gpt-", value)
    reasons = {
        dict(has)["reason"] for name, has in after if name == "tollgate_dead_events"
    }  # the whole list from the start, so that an alert never misses the first
    assert reasons >= set(Reason)
