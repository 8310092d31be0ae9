"""The store keeps its promises on chDB and through ClickHouse's HTTP interface alike."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from schemas.errors import Outcome
from schemas.events import Attempt
from services.backends.clickhouse.client import (
    ClickHouse,
    ClickHouseUnavailable,
    QueryLimits,
    QueryRefused,
)
from services.backends.clickhouse.rows import ATTEMPT_COLUMNS, REQUEST_COLUMNS, Place, Stored
from services.backends.clickhouse.schema import SchemaMismatch, ddl_files, migrate
from services.backends.clickhouse.store import RequestStore
from tests.parts.clickhouse import ROOT, stop_merges
from tests.parts.terminals import START_US, error, usage

pytest_plugins = ["tests.parts.clickhouse_fixtures"]

TOPIC = "tollgate.events.v1"


@pytest.fixture
def store(clickhouse):
    migrate(clickhouse)
    stop_merges(clickhouse)
    return RequestStore(clickhouse)


def stored(events, first=0):
    return [Stored(e, Place(at, e.occurred_at + 1_000_000)) for at, e in enumerate(events, first)]


def one(clickhouse, sql):
    rows = clickhouse.select(sql).rows
    assert len(rows) == 1
    return rows[0]


def test_migrating_twice_applies_each_file_once(clickhouse):
    assert migrate(clickhouse) == [f.name for f in ddl_files()]
    assert migrate(clickhouse) == []


def test_another_text_of_an_applied_file_is_refused(clickhouse):
    migrate(clickhouse)
    clickhouse.command("ALTER TABLE schema_versions UPDATE sha256 = 'x' WHERE version = 2 "
                       "SETTINGS mutations_sync = 1")  # fmt: skip
    with pytest.raises(SchemaMismatch, match="0002"):
        migrate(clickhouse)


def test_a_newer_database_is_refused(clickhouse):
    migrate(clickhouse)
    clickhouse.insert(
        "schema_versions",
        ["version", "name", "sha256"],
        ["UInt32", "String", "String"],
        [[9999], ["9999_later.sql"], ["x"]],
        token="later",
    )
    with pytest.raises(SchemaMismatch, match="9999"):
        migrate(clickhouse)


@pytest.mark.parametrize(
    ("table", "columns"), [("requests", REQUEST_COLUMNS), ("attempts", ATTEMPT_COLUMNS)]
)
def test_the_columns_sent_are_the_columns_of_the_table(store, table, columns):
    described = store.clickhouse.select(f"DESCRIBE {table}").rows
    assert {row[0]: row[1] for row in described} == columns


def test_every_field_of_an_event_arrives(store):
    event = usage(
        1,
        tags={"team": "käse", "x": ""},
        usage={"input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4, "cache_write_1h": 5,
               "reasoning": 6, "web_search": 7, "images": 8},
        outcome=Outcome.CLIENT_ABORTED,
        cost_nano=123_456_789,
        written_off_nano=456_789,
        charged_nano=123_000_000,
        estimated=True,
        tier="priority",
        client="claude-cli/2",
        agent_id="agent-7",
        upstream_request_id="req_up",
        lease_id="lease_1",
        lease_seq=9,
        attempts=[Attempt(channel="a", status=503, code="upstream_error", started_at=START_US),
                  Attempt(channel="sim", status=200, total_ms=7, upstream_request_id="req_up")],
    )  # fmt: skip
    store.insert(TOPIC, 3, stored([event], first=41), "t")
    found = store.clickhouse.select("SELECT * FROM usage")
    row = dict(zip(found.columns, found.rows[0], strict=True))
    occurred_at, log_time = row.pop("occurred_at"), row.pop("log_time")
    assert round(occurred_at.timestamp() * 1e6) % 10**15 == event.occurred_at % 10**15
    assert (log_time - occurred_at).total_seconds() == 1
    assert row == {
        "request_id": event.request_id, "account_id": "acct_a", "key_id": "key_a",
        "source": "edge", "dialect": "anthropic", "path": "/v1/messages",
        "asked_model": event.model, "model": event.priced_as,
        "upstream_model": event.upstream_model, "channel": "sim", "group": "default",
        "stream": True, "session_id": "session-1", "agent_id": "agent-7",
        "client": "claude-cli/2", "tags": {"team": "käse", "x": ""}, "status": 200,
        "outcome": "client_aborted", "billed": True, "error_code": "", "error_stage": "",
        "error_message": "", "input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3,
        "cache_write_5m_tokens": 4, "cache_write_1h_tokens": 5, "reasoning_tokens": 6,
        "units": {"web_search": 7, "images": 8}, "cost_nano": 123_000_000,
        "cost_usd": Decimal("0.123"), "written_off_nano": 456_789,
        "written_off_usd": Decimal("0.000456789"), "provider_cost_nano": 123_456_789,
        "provider_cost_usd": Decimal("0.123456789"), "hold_nano": 0, "price_version": "pv_1",
        "multiplier_ppm": 1_000_000, "tier": "priority", "estimated": True, "ttfb_ms": 120,
        "total_ms": 900, "attempts": 2, "upstream_request_id": "req_up", "job_id": "",
        "event_id": event.event_id, "incarnation": "edge-1", "seq": 2, "lease_id": "lease_1",
        "lease_seq": 9, "log_topic": TOPIC, "log_partition": 3, "log_offset": 41,
    }  # fmt: skip
    calls = store.clickhouse.select(
        "SELECT attempt, channel, status, code, total_ms FROM usage_attempts ORDER BY attempt"
    )
    assert calls.rows == [(1, "a", 503, "upstream_error", 0), (2, "sim", 200, "", 7)]


def test_a_job_is_a_row_of_the_jobs_view(store):
    made = {"job_id": "job_A", "job_kind": "video", "dialect": "media", "total_ms": 61_000}
    film = usage(1, **made, job_state="completed", usage={"seconds": 5, "calls": 1})
    lost = error(2, **{**made, "job_id": "job_B"}, job_state="expired", job_error="no_capacity")
    store.insert(TOPIC, 0, stored([film, lost, usage(3)]), "t")
    store.insert(TOPIC, 0, stored([film], first=7), "again")
    sql = (
        "SELECT job_id, kind, state, error, units, cost_nano, "
        "dateDiff('millisecond', created_at, occurred_at) FROM jobs ORDER BY job_id"
    )
    assert store.clickhouse.select(sql).rows == [
        ("job_A", "video", "completed", "", {"seconds": 5, "calls": 1}, 2000, 61_000),
        ("job_B", "video", "expired", "no_capacity", {}, 0, 61_000),
    ]


def test_a_failure_is_a_row_that_costs_nothing(store):
    store.insert(TOPIC, 0, stored([error(1, provider_cost_nano=5)]), "t")
    sql = "SELECT kind, billed, cost_nano, provider_cost_nano, error_code, error_stage, status "
    assert one(store.clickhouse, sql + "FROM requests FINAL") == (
        "error", False, 0, 5, "upstream_error", "upstream", 502,
    )  # fmt: skip


def test_numbers_beyond_a_column_are_cut_and_stop_nothing(store):
    event = usage(1, status=10**30, ttfb_ms=10**30, occurred_at=10**30, multiplier_ppm=10**30,
                  seq=10**30, cost_nano=9 * 10**18)  # fmt: skip
    store.insert(TOPIC, 0, stored([event]), "t")
    row = one(store.clickhouse, "SELECT status, ttfb_ms, cost_nano, toYear(occurred_at) FROM usage")
    assert row == (65535, 2**63 - 1, 9 * 10**18, 2199)
    assert store.stored_event_ids(stored([event])) == {event.event_id}


def test_money_is_added_beyond_64_bits(store):
    events = [usage(n, cost_nano=9 * 10**18) for n in range(5)]
    store.insert(TOPIC, 0, stored(events), "t")
    assert store.totals(TOPIC, 0, 5).cost_nano == 45 * 10**18
    assert one(store.clickhouse, "SELECT cost_nano, cost_usd FROM usage_daily") == (
        45 * 10**18, Decimal(45 * 10**9),
    )  # fmt: skip


def test_the_same_insert_again_stores_nothing_again(store):
    rows = stored([usage(n) for n in range(100)])
    for _ in range(3):
        store.insert(TOPIC, 0, rows, "same")
    # Counted without FINAL: what the tokens alone kept out.
    assert one(store.clickhouse, "SELECT count() FROM requests") == (100,)
    assert one(store.clickhouse, "SELECT count() FROM attempts") == (100,)


def test_a_wide_batch_is_one_block_and_deduplicated_whole(store):
    """Rows of 6 KB make the driver send several native blocks; they are one insert all the same."""
    tags = {f"t{n}": "x" * 500 for n in range(12)}
    rows = stored([usage(n, tags=tags) for n in range(2000)])
    for _ in range(2):
        store.insert(TOPIC, 0, rows, "wide")
    assert one(store.clickhouse, "SELECT count() FROM requests") == (2000,)
    assert one(store.clickhouse, "SELECT uniqExact(_part) FROM requests") == (1,)


def test_a_batch_across_two_months_heals_part_by_part(store):
    first, second = 1_790_700_000_000_000, 1_790_900_000_000_000  # September and October 2026
    events = [usage(n, occurred_at=(second if n % 2 else first) + n) for n in range(10)]
    for _ in range(2):
        store.insert(TOPIC, 0, stored(events), "months")
    assert one(store.clickhouse, "SELECT count(), uniqExact(_partition_id) FROM requests") == (
        10, 2,
    )  # fmt: skip


def test_copies_at_other_offsets_are_one_row_in_every_view(store):
    """What the look-up should have dropped is still counted once: the belt."""
    events = [usage(n) for n in range(50)]
    store.insert(TOPIC, 0, stored(events), "first")
    store.insert(TOPIC, 0, stored(events, first=1000), "second")
    assert one(store.clickhouse, "SELECT count() FROM requests") == (100,)
    expected = sum(e.charged_nano for e in events)
    assert one(store.clickhouse, "SELECT count(), sum(cost_nano) FROM usage") == (50, expected)
    for view in ("usage_hourly", "usage_daily"):
        sql = f"SELECT sum(requests), sum(cost_nano) FROM {view}"
        assert one(store.clickhouse, sql) == (50, expected)
    assert one(store.clickhouse, "SELECT count() FROM usage_attempts") == (50,)


def test_the_lookup_finds_exactly_what_is_stored(store):
    events = [usage(n, account_id=f"acct_{n % 7}", occurred_at=START_US + n * 10**9)
              for n in range(4100)]  # fmt: skip
    store.insert(TOPIC, 0, stored(events[:4000]), "t")
    found = store.stored_event_ids(stored(events[1:]))
    assert found == {e.event_id for e in events[1:4000]}
    assert store.stored_event_ids([]) == set()


def test_totals_and_rows_of_a_range(store):
    events = [usage(0), error(1, provider_cost_nano=3), usage(2, written_off_nano=7)]
    store.insert(TOPIC, 0, stored(events, first=10), "t")
    store.insert(TOPIC, 1, stored([usage(5)], first=10), "u")
    all_of_it, part = store.totals(TOPIC, 0, 13), store.totals(TOPIC, 0, 12)
    assert all_of_it[:5] == (3, 12, 4000, 7, 4003)
    assert part[:3] == (2, 11, 1000)
    assert part.ids_hash != all_of_it.ids_hash
    assert store.totals(TOPIC, 9, 100)[:3] == (0, 0, 0)
    rows = store.rows_between(TOPIC, 0, 11, 12)
    assert [(r.log_offset, r.event_id, r.cost_nano) for r in rows] == [
        (11, events[1].event_id, 0), (12, events[2].event_id, 3000),
    ]  # fmt: skip


def test_threads_ask_and_insert_at_once(store):
    """What a reader counts never goes back, is never empty again, and ends at everything."""

    def read(_):
        counts = [0]
        while counts[-1] < 1000:
            counts.append(store.totals(TOPIC, 0, 10**9).rows)
            asked = store.ask("SELECT count() FROM usage", QueryLimits()).rows[0][0]
            assert asked >= counts[-1]
        return counts

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, n) for n in range(2)]
        for at in range(0, 1000, 100):
            store.insert(TOPIC, 0, stored([usage(n) for n in range(at, at + 100)], at), str(at))
        for reader in readers:
            counts = reader.result(60)
            assert counts == sorted(counts)
            assert all(count % 100 == 0 for count in counts)


def test_questions_of_people_cannot_write(store):
    for sql in (
        "INSERT INTO schema_versions (version) VALUES (7)",
        "ALTER TABLE requests DELETE WHERE 1",
        "DROP TABLE requests",
        "SELECT 1 SETTINGS readonly = 0",
    ):
        with pytest.raises(QueryRefused):
            store.ask(sql, QueryLimits())
    assert store.ask("SELECT count() AS n FROM requests", QueryLimits()).rows == [(0,)]
    # ... and leave our own clients able to.
    store.insert(TOPIC, 0, stored([usage(1)]), "t")
    assert store.ask("SELECT count() AS n FROM requests", QueryLimits()).rows == [(1,)]


@pytest.mark.parametrize(
    ("sql", "limits"),
    [
        ("SELECT sleepEachRow(1) FROM numbers(3)", QueryLimits(execution_s=0.5)),
        ("SELECT number FROM numbers(1000)", QueryLimits(result_rows=100)),
        ("SELECT groupArray(number) FROM numbers(100000000)", QueryLimits(memory_bytes=10**8)),
    ],
)
def test_questions_of_people_have_limits(store, sql, limits):
    with pytest.raises(QueryRefused) as refused:
        store.ask(sql, limits)
    assert refused.value.code in (159, 396, 241)


def test_a_wrong_statement_is_refused_and_not_tried_again(store):
    with pytest.raises(QueryRefused) as refused:
        store.clickhouse.select("SELECT nothing FROM nowhere")
    assert refused.value.code == 60


@pytest.mark.part("clickhouse-http")
def test_a_dead_server_is_unavailable(own_front):
    opened = ClickHouse(own_front.url, "t")
    migrate(opened)
    own_front.kill()
    for call in (lambda: opened.select("SELECT 1"), lambda: opened.ask("SELECT 1", QueryLimits())):
        with pytest.raises(ClickHouseUnavailable):
            call()
    own_front.start()
    assert opened.select("SELECT 1").rows == [(1,)]
    opened.close()


@pytest.mark.part("clickhouse-http")
def test_a_database_in_the_dsn_goes_first(shared_front):
    opened = ClickHouse(f"{shared_front.url}/of_the_dsn", "other")
    assert opened.select("SELECT currentDatabase()").rows == [("of_the_dsn",)]
    opened.close()


@pytest.mark.parametrize("dsn", ["clickhouse://x", "http://127.0.0.1:1/bad-name", ""])
def test_a_wrong_dsn_is_refused(dsn, tmp_path):
    with pytest.raises(ValueError, match="clickhouse"):
        ClickHouse(dsn, "t", folder=tmp_path)


OWNER = """
import sys, time
from pathlib import Path
from services.backends.clickhouse.client import ClickHouse
opened = ClickHouse("chdb:///engine", "t", folder=Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""
LATECOMER = """
import sys
from pathlib import Path
from services.backends.clickhouse.client import ClickHouse
from services.backends.clickhouse.embedded import EngineBusy
try:
    ClickHouse("chdb:///engine", "t", folder=Path(sys.argv[1]))
except EngineBusy as ex:
    print(f"busy: {ex}")
"""


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.part("chdb")
def test_one_process_owns_the_folder_and_a_dead_owner_leaves_no_spool(tmp_path, chdb_folder):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout.readline() == "open\n"
        said = run(LATECOMER, tmp_path)
        assert "busy" in said
        assert f"pid {owner.pid}" in said
        (tmp_path / "engine.spool" / "left.native").write_bytes(b"x" * 1000)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert run(LATECOMER, tmp_path) == ""
    assert list((tmp_path / "engine.spool").iterdir()) == []
