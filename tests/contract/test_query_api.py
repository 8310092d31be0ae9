"""The query API over its real socket, on chDB and through ClickHouse's HTTP interface."""

import socket
import stat
import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path

import falcon
import pytest
import requests

from schemas.config import Config, Edge, Meter
from schemas.errors import Code, Outcome, Stage
from services.backends.clickhouse.client import QueryLimits
from services.backends.clickhouse.rows import Place, Stored
from services.backends.clickhouse.schema import migrate
from services.backends.clickhouse.store import RequestStore
from services.backends.clock import FakeClock
from services.backends.identity import HEADER, identities, identity
from services.backends.query_client import QueryClient, QueryFailed, QueryUnavailable
from services.backends.settings import ConfigError, load_secret
from services.meter.query_api import create_app
from services.meter.query_server import QueryServer
from tests.parts.clickhouse import CHDB, HTTP, open_database, stop_merges
from tests.parts.terminals import MODEL, error, usage

pytest_plugins = ["tests.parts.clickhouse_fixtures"]

NOW_US = 1_800_000_000_000_000  # 2027-01-15 08:00:00
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
ROW_FIELDS = [
    "request_id", "created_at", "api_key_id", "source", "dialect", "model", "upstream_model",
    "channel", "session_id", "stream", "status", "outcome", "error_code", "input_tokens",
    "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens",
    "reasoning_tokens", "units", "cost_nano", "cost_usd", "price_version", "estimated", "ttfb_ms",
    "total_ms", "attempts",
]  # fmt: skip


class House:
    """A store, the API on a socket, and a client for it."""

    def __init__(self, folder, clickhouse):
        migrate(clickhouse)
        stop_merges(clickhouse)
        self.clickhouse = clickhouse
        self.store = RequestStore(clickhouse)
        # Socket paths are short: 107 bytes.
        self.config = Config(
            data_dir=str(folder),
            edge=Edge(query_url="unix:q.sock"),
            meter=Meter(query_socket="q.sock", query_listen="127.0.0.1:0"),
        )
        self.clock = FakeClock(NOW_US)
        self.secret = load_secret(folder)
        app = create_app(
            self.store,
            self.secret,
            self.clock,
            find_key=lambda account, masked: {
                ("acct_a", "sk-toll-...****1234"): "key_b"
            }.get((account, masked)),
            limits=QueryLimits(execution_s=2, result_rows=50),
        )  # fmt: skip
        self.server = QueryServer(self.config, app)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.server.run, args=(self.stop,))
        self.thread.start()
        self.client = QueryClient(self.config, self.clock)
        self._offset = 0

    def add(self, *events):
        rows = [Stored(e, Place(self._offset + n, NOW_US)) for n, e in enumerate(events)]
        self.store.insert("t", 0, rows, f"add{self._offset}")
        self._offset += len(rows)

    def get(self, path, account="acct_a", **params):
        return self.client.get(path, account, {k: str(v) for k, v in params.items()})

    def refused(self, path, account="acct_a", **params):
        with pytest.raises(QueryFailed) as failed:
            self.get(path, account, **params)
        return failed.value.status, failed.value.message

    def empty(self):
        """No row is left. Tokens go on, so nothing that comes is taken for a repetition."""
        for table in ("requests", "attempts"):
            self.clickhouse.command(f"TRUNCATE TABLE {table}")

    def close(self):
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module", params=[CHDB, HTTP])
def clickhouse(request):
    """One database for all tests of an engine."""
    opened = open_database(request, "usage_api")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory, clickhouse):
    built = House(tmp_path_factory.mktemp("house"), clickhouse)
    yield built
    built.close()


@pytest.fixture
def house(shared_house):
    """Without a row."""
    shared_house.empty()
    return shared_house


def at(us, n, make=usage, **fields):
    return make(n, occurred_at=NOW_US - us, **fields)


def test_a_billed_row_has_exactly_these_fields(house):
    house.add(
        usage(
            1,
            occurred_at=NOW_US - 1,
            usage={"input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4,
                   "cache_write_1h": 5, "reasoning": 6, "web_search": 7},
            cost_nano=1_500_000,
            model="claude-sonnet-4.6",
            estimated=True,
            outcome=Outcome.BUDGET_CUT,
        )
    )  # fmt: skip
    answer = house.get("/v1/usage")
    assert list(answer) == ["data", "next_cursor"]
    assert answer["next_cursor"] is None
    (row,) = answer["data"]
    assert list(row) == ROW_FIELDS
    assert row == {
        "request_id": usage(1).request_id, "created_at": "2027-01-15T07:59:59.999999Z",
        "api_key_id": "key_a", "source": "edge", "dialect": "anthropic", "model": MODEL,
        "upstream_model": MODEL, "channel": "sim", "session_id": "session-1", "stream": True,
        "status": 200, "outcome": "budget_cut", "error_code": None, "input_tokens": 1,
        "output_tokens": 2, "cache_read_tokens": 3, "cache_write_5m_tokens": 4,
        "cache_write_1h_tokens": 5, "reasoning_tokens": 6, "units": {"web_search": 7},
        "cost_nano": 1_500_000, "cost_usd": "0.0015", "price_version": "pv_1",
        "estimated": True, "ttfb_ms": 120, "total_ms": 900, "attempts": 1,
    }  # fmt: skip


def test_the_row_of_a_job_tells_of_the_job(house):
    fields = {"job_id": "job_A", "job_kind": "video", "job_state": "cancelled"}
    house.add(at(1, 1, error, **fields, job_error="cancelled_by_user"))
    (row,) = house.get("/v1/usage")["data"]
    assert list(row) == [*ROW_FIELDS, "job"]
    told = {"id": "job_A", "kind": "video", "state": "cancelled", "error": "cancelled_by_user"}
    assert row["job"] == told


def test_failures_are_rows_with_cost_zero(house):
    house.add(at(1, 1, error, code=Code.TIMEOUT, stage=Stage.STREAM, provider_cost_nano=9))
    (row,) = house.get("/v1/usage")["data"]
    assert list(row) == ROW_FIELDS
    assert (row["cost_nano"], row["cost_usd"], row["outcome"]) == (0, "0", "failed")
    assert (row["error_code"], row["status"], row["input_tokens"]) == ("timeout", 502, 0)


def test_pages_are_newest_first_and_hold_when_rows_arrive(house):
    # Times repeat, so the event id must break the tie.
    house.add(*(at((n // 3) * 1000, n) for n in range(100)))
    expected = sorted(
        ((NOW_US - (n // 3) * 1000, usage(n).event_id) for n in range(100)), reverse=True
    )
    seen, cursor, pages = [], "", 0
    while True:
        page = house.get("/v1/usage", limit=7, **({"cursor": cursor} if cursor else {}))
        seen += [row["request_id"] for row in page["data"]]
        pages += 1
        house.add(usage(1000 + pages, occurred_at=NOW_US + pages))  # newer than every page
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert seen == [event_id.split(":")[0] for _, event_id in expected]
    assert pages == 15


def test_the_last_full_page_has_no_cursor(house):
    house.add(*(at(n, n) for n in range(10)))
    page = house.get("/v1/usage", limit=10)
    assert (len(page["data"]), page["next_cursor"]) == (10, None)
    assert len(house.get("/v1/usage")["data"]) == 10


def test_the_default_page_is_fifty(house):
    house.add(*(at(n, n) for n in range(60)))
    assert len(house.get("/v1/usage")["data"]) == 50


def test_copies_of_an_event_are_one_row_and_counted_once(house):
    events = [at(n, n) for n in range(20)]
    house.add(*events)
    house.add(*events)
    assert house.clickhouse.select("SELECT count() FROM requests").rows == [(40,)]
    seen, cursor = [], ""
    while True:
        page = house.get("/v1/usage", limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [row["request_id"] for row in page["data"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert seen == [e.request_id for e in events]
    assert house.get("/api/v1/me/usage")["totals"]["call_count"] == 20


def test_filters(house):
    house.add(
        at(5, 1, key_id="key_b", session_id="s2"),
        at(4, 2, error, outcome=Outcome.CLIENT_GONE),
        at(3, 3, model="gpt-5.2", priced_as="gpt-5.2"),
        at(
            2, 4, model="claude-sonnet-4-6-20260101", outcome=Outcome.CLIENT_ABORTED, job_id="job_1"
        ),
    )

    def found(**params):
        return [int(r["request_id"][-4:], 16) for r in house.get("/v1/usage", **params)["data"]]

    assert found() == [4, 3, 2, 1]
    assert found(api_key_id="key_b") == [1]
    assert found(session_id="s2") == [1]
    for name in ("job_1", "task_1", "video_1"):
        assert found(job_id=name) == [4]
        totals = house.get("/api/v1/me/usage", job_id=name)["totals"]
        assert (
            totals["call_count"]
            == len(house.get("/api/v1/me/usage", job_id=name, limit=9)["items"])
            == 1
        )
    assert found(job_id="job_2") == []
    assert found(outcome="client_gone") == [2]
    assert found(model="gpt-5.2") == [3]
    assert found(model=MODEL) == [4, 2, 1]
    assert found(model="claude-sonnet-4-6-20260101") == [4]
    assert found(request_id=usage(3).request_id) == [3]
    assert found(since="2027-01-15T07:59:59.999996Z") == [4, 3, 2]
    assert found(since="2027-01-15T08:59:59.999996+01:00") == [4, 3, 2]
    assert found(until="2027-01-15T07:59:59.999996Z") == [1]
    assert found(until="2027-01-15") == []
    assert found(since=NOW_US // 10**6 - 1, until=NOW_US // 10**6) == [4, 3, 2, 1]
    assert found(model="' OR 1=1 --") == []


def test_an_account_sees_its_own_and_nothing_else(house):
    house.add(*(at(n, n, account_id=f"acct_{'ab'[n % 2]}") for n in range(10)))
    other = usage(1)  # of acct_b
    for path in ("/v1/usage", "/api/v1/me/usage", "/api/v1/usage"):
        for account, expected in (("acct_a", 5), ("acct_b", 5), ("acct_c", 0)):
            answer = house.get(path, account, limit=100)
            assert len(answer.get("data", answer.get("items"))) == expected
    assert house.get("/v1/usage", request_id=other.request_id)["data"] == []
    assert house.get("/api/v1/me/usage", request_id=other.request_id)["items"] == []
    assert house.get("/api/v1/me/usage", "acct_c") == {
        "buckets": [],
        "totals": {"total_usd": "0", "input_tokens": 0, "output_tokens": 0, "call_count": 0},
    }
    # A cursor of another account leads nowhere else.
    cursor = house.get("/v1/usage", "acct_b", limit=1)["next_cursor"]
    rows = house.get("/v1/usage", "acct_a", cursor=cursor, limit=100)["data"]
    own = {at(n, n).request_id for n in range(0, 10, 2)}
    assert {row["request_id"] for row in rows} <= own


def test_buckets_by_day_and_only_what_was_billed(house):
    house.add(
        at(HOUR_US, 1, cost_nano=1_000_001),
        at(2 * HOUR_US, 2, cost_nano=2_000_000),
        at(9 * HOUR_US, 3, cost_nano=5),
        at(1, 4, error),
        at(31 * DAY_US, 5),  # before the default window
    )
    assert house.get("/api/v1/me/usage") == {
        "buckets": [
            {"bucket": "2027-01-14", "total_usd": "0.000000005", "input_tokens": 100,
             "output_tokens": 50, "call_count": 1},
            {"bucket": "2027-01-15", "total_usd": "0.003000001", "input_tokens": 200,
             "output_tokens": 100, "call_count": 2},
        ],
        "totals": {"total_usd": "0.003000006", "input_tokens": 300, "output_tokens": 150,
                   "call_count": 3},
    }  # fmt: skip
    assert house.get("/api/v1/usage") == house.get("/api/v1/me/usage")


def test_keys_are_present_only_when_asked_for(house):
    house.add(
        at(1, 1, key_id="key_b"), at(2, 2, priced_as="gpt-5.2"), at(HOUR_US + 1, 3, key_id="key_b")
    )

    def buckets(group_by, **more):
        answer = house.get("/api/v1/me/usage", group_by=group_by, **more)
        assert answer["totals"]["call_count"] == sum(b["call_count"] for b in answer["buckets"])
        sums = ("total_usd", "input_tokens", "output_tokens", "call_count")
        assert all(list(b)[-4:] == list(sums) for b in answer["buckets"])
        return [{k: v for k, v in b.items() if k not in sums} for b in answer["buckets"]]

    assert buckets("hour") == [
        {"bucket": "2027-01-15T06:00:00Z"}, {"bucket": "2027-01-15T07:00:00Z"},
    ]  # fmt: skip
    assert buckets("model") == [{"model": MODEL}, {"model": "gpt-5.2"}]
    assert buckets("api_key") == [{"api_key": "key_a"}, {"api_key": "key_b"}]
    assert buckets("model,day") == [
        {"bucket": "2027-01-15", "model": MODEL}, {"bucket": "2027-01-15", "model": "gpt-5.2"},
    ]  # fmt: skip
    assert len(buckets("hour, model, api_key")) == 3
    for name in ("api_key", "api_key_id"):
        assert buckets("model", **{name: "key_b"}) == [{"model": MODEL}]
    assert buckets("model", api_key="sk-toll-...****1234") == [{"model": MODEL}]
    assert buckets("day", model="gpt-5.2") == [{"bucket": "2027-01-15"}]


def test_the_window_is_since_inclusive_until_exclusive(house):
    house.add(*(at(n * DAY_US, n) for n in range(5)))
    answer = house.get("/api/v1/me/usage", since="2027-01-12T08:00:00Z",
                       until="2027-01-14T08:00:00Z")  # fmt: skip
    assert [b["bucket"] for b in answer["buckets"]] == ["2027-01-12", "2027-01-13"]


def test_ninety_days_are_answered_and_a_moment_more_is_not(house):
    house.add(at(90 * DAY_US, 1))
    path = "/api/v1/me/usage"
    since = (NOW_US - 90 * DAY_US) // 10**6
    assert house.get(path, since=since)["totals"]["call_count"] == 0 + 1
    status, message = house.refused(path, since=since - 1)
    assert (status, message) == (400, "the window must not be longer than 90 days")
    assert house.refused(path, since="2027-01-10", until="2027-01-09")[0] == 400


def test_calls_as_items(house):
    house.add(
        at(1, 1, cost_nano=1_234_000),
        at(2, 2, cost_nano=1_234_567),
        at(3, 3, error),
        at(100 * DAY_US, 4),
    )
    answer = house.get("/api/v1/me/usage", limit=10)
    assert list(answer) == ["items", "next_cursor"]
    assert answer["items"][0] == {
        "request_id": usage(1).request_id, "api_key_id": "key_a", "model": MODEL,
        "prompt_tokens": 1100, "completion_tokens": 50, "credits": 1234,
        "created_at": "2027-01-15T07:59:59.999999Z",
    }  # fmt: skip
    assert [i["credits"] for i in answer["items"]] == [1234, 1234.567, 5]
    assert len(house.get("/api/v1/me/usage", limit=1)["items"]) == 1
    by_id = house.get("/api/v1/me/usage", request_id=usage(4).request_id)
    assert [i["credits"] for i in by_id["items"]] == [5]


def test_rows_items_and_buckets_add_up_to_the_same(house):
    events = [
        at(n * HOUR_US, n, account_id="acct_a", cost_nano=n * 7919 + 1,
           usage={"input": n, "output": 2 * n})
        for n in range(300)
    ] + [at(n, 1000 + n, error) for n in range(50)]  # fmt: skip
    house.add(*events)
    truth = sum(e.charged_nano for e in events[:300])
    rows, cursor = [], ""
    while cursor is not None:
        page = house.get("/v1/usage", limit=128, **({"cursor": cursor} if cursor else {}))
        rows += page["data"]
        cursor = page["next_cursor"]
    assert Counter(r["outcome"] for r in rows) == {"completed": 300, "failed": 50}
    assert sum(r["cost_nano"] for r in rows) == truth
    assert sum(Decimal(r["cost_usd"]) for r in rows) == Decimal(truth) / 10**9
    for group_by in ("day", "hour,model", "api_key", "model"):
        answer = house.get("/api/v1/me/usage", group_by=group_by)
        assert sum(Decimal(b["total_usd"]) for b in answer["buckets"]) == Decimal(truth) / 10**9
        assert Decimal(answer["totals"]["total_usd"]) == Decimal(truth) / 10**9
        assert answer["totals"]["output_tokens"] == sum(r["output_tokens"] for r in rows)
    items = house.get("/api/v1/me/usage", limit=1000)["items"]
    assert round(sum(i["credits"] for i in items) * 1000) == truth


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
@pytest.mark.parametrize(
    ("path", "params", "named"),
    [
        ("/v1/usage", {"limit": "0"}, "limit"),
        ("/v1/usage", {"limit": "1001"}, "limit"),
        ("/v1/usage", {"limit": "ten"}, "limit"),
        ("/v1/usage", {"limit": "-1"}, "limit"),
        ("/v1/usage", {"limit": "\u0665"}, "limit"),
        ("/v1/usage", {"cursor": "nonsense"}, "cursor"),
        ("/v1/usage", {"cursor": "é"}, "cursor"),
        ("/v1/usage", {"outcome": "paid"}, "outcome"),
        ("/v1/usage", {"since": "yesterday"}, "since"),
        ("/v1/usage", {"until": "2027-13-01"}, "until"),
        ("/v1/usage", {"model": "x" * 2000}, "model"),
        ("/api/v1/me/usage", {"group_by": "week"}, "group_by"),
        ("/api/v1/me/usage", {"group_by": "day,hour"}, "group_by"),
        ("/api/v1/me/usage", {"group_by": "day,"}, "group_by"),
        ("/api/v1/me/usage", {"since": "2020-01-01"}, "since"),
        ("/api/v1/me/usage", {"api_key": "sk-toll-...****9999"}, "api_key"),
    ],
)
def test_a_wrong_parameter_is_named_in_openais_envelope(house, path, params, named):
    header = {HEADER: identities(house.secret).sign(identity("acct_a", "", NOW_US))}
    url = f"http://127.0.0.1:{house.server.tcp_port}{path}"
    response = requests.get(url, params=params, headers=header, timeout=10)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"type", "code", "message", "param"}
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error", "invalid_param", named,
    )  # fmt: skip
    assert named in error["message"] or named in ("api_key", "since")


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_a_repeated_parameter_and_unknown_routes_are_refused(house):
    header = {HEADER: identities(house.secret).sign(identity("acct_a", "", NOW_US))}
    base = f"http://127.0.0.1:{house.server.tcp_port}"
    for method, path, status, code in (
        ("GET", "/v1/usage?model=a&model=b", 400, "invalid_param"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/usage", 405, "method_not_allowed"),
    ):
        response = requests.request(method, base + path, headers=header, timeout=10)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_callers_must_be_who_they_say(house):
    base = f"http://127.0.0.1:{house.server.tcp_port}"
    house.add(at(1, 1))
    account = identities(house.secret).sign(identity("acct_a", "", NOW_US))
    operator = identities(house.secret).sign(identity("*", "", NOW_US))
    expired = identities(house.secret).sign(identity("acct_a", "", NOW_US - HOUR_US))
    forged = identities(b"x" * 32).sign(identity("acct_a", "", NOW_US))
    for path in ("/v1/usage", "/api/v1/me/usage", "/api/v1/usage", "/internal/health"):
        for value in (None, "", "x", expired, forged, account[:-1]):
            headers = {HEADER: value} if value is not None else {}
            response = requests.get(base + path, headers=headers, timeout=10)
            assert (response.status_code, response.json()["error"]["code"]) == (
                401, "invalid_api_key",
            )  # fmt: skip
    for method, path, value in (
        ("GET", "/v1/usage", operator),
        ("GET", "/internal/health", account),
        ("POST", "/internal/sql", account),
    ):
        response = requests.request(method, base + path, headers={HEADER: value}, timeout=10)
        assert (response.status_code, response.json()["error"]["code"]) == (
            403, "permission_denied",
        )  # fmt: skip


def test_the_operator_asks_in_sql(house):
    house.add(at(1, 1, cost_nano=1_500_000), at(2, 2, error))
    answer = house.client.sql(
        "SELECT request_id, occurred_at, cost_usd, tags, stream, 1/0 AS inf, NULL AS nothing, "
        "toInt128('170141183460469231731687303715884105727') AS big, toDate('2027-01-15') AS day, "
        "[1, 2] AS list FROM usage WHERE billed;"
    )
    assert answer == {
        "columns": ["request_id", "occurred_at", "cost_usd", "tags", "stream", "inf", "nothing",
                    "big", "day", "list"],
        "types": ["String", "DateTime64(6, 'UTC')", "Decimal(38, 9)",
                  "Map(LowCardinality(String), String)", "Bool", "Float64", "Nullable(Nothing)",
                  "Int128", "Date", "Array(UInt8)"],
        "rows": [[usage(1).request_id, "2027-01-15T07:59:59.999999Z", "0.001500000", {}, True,
                  None, None, "170141183460469231731687303715884105727", "2027-01-15", [1, 2]]],
    }  # fmt: skip
    assert house.client.sql("SHOW TABLES LIKE 'usage%'")["rows"] == [
        ["usage"], ["usage_attempts"], ["usage_daily"], ["usage_hourly"],
    ]  # fmt: skip
    assert house.client.sql("SELECT request_id FROM usage WHERE 0")["rows"] == []


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE requests",
        "INSERT INTO requests (event_id) VALUES ('x')",
        "SELECT 1; DROP TABLE requests",
        "WITH x AS (SELECT 1) INSERT INTO requests (event_id) SELECT 'x'",
        "SELECT 1 INTO OUTFILE '{folder}/out'",
        "SELECT file('{folder}/secret.key')",
        "SELECT * FROM file('{folder}/secret.key', 'LineAsString')",
        "SELECT * FROM (SELECT * FROM file('{folder}/secret.key', 'LineAsString') "
        "SETTINGS readonly = 0)",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV')",
        "SELECT * FROM remote('127.0.0.1:1', 'system.one')",
        "SELECT * FROM executable('ls', 'CSV', 'a String')",
        "SELECT * FROM numbers(1000)",
        "SELECT sleepEachRow(1) FROM numbers(3)",
        "SELECT nothing",
        "EXPLAIN",
    ],
)
def test_what_the_operator_may_not_ask_is_refused_with_the_reason(house, sql):
    folder = Path(house.config.data_dir)
    assert (folder / "secret.key").exists()
    with pytest.raises(QueryFailed) as failed:
        house.client.sql(sql.replace("{folder}", str(folder)))
    assert failed.value.status == 400
    assert failed.value.message
    assert not (folder / "out").exists()
    assert house.client.sql("SELECT count() FROM requests")["rows"] == [[0]]


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_a_body_that_is_no_statement_is_refused(house):
    header = {HEADER: identities(house.secret).sign(identity("*", "", NOW_US))}
    url = f"http://127.0.0.1:{house.server.tcp_port}/internal/sql"
    for body, status in ((b"", 400), (b"{}", 400), (b'{"sql": 1}', 400), (b"\xff", 400),
                         (b"x" * 300_000, 413)):  # fmt: skip
        response = requests.post(url, data=body, headers=header, timeout=10)
        assert response.status_code == status, body[:20]


def test_health_and_the_socket_is_private(house):
    assert house.client.health()["status"] == "ok"
    assert stat.S_IMODE(house.server.socket_path.stat().st_mode) == 0o600


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_the_edge_gets_status_and_bytes_as_they_are(house):
    house.add(at(1, 1))
    status, body = house.client.forward("/v1/usage", "limit=1&model=" + MODEL, "acct_a", "key_a")
    assert status == 200
    assert body.startswith(b'{"data":[{"request_id"')
    status, body = house.client.forward("/v1/usage", "limit=x", "acct_a", "key_a")
    assert status == 400
    assert b'"param":"limit"' in body
    url = f"http://127.0.0.1:{house.server.tcp_port}"
    over_tcp = QueryClient(
        Config(data_dir=house.config.data_dir, edge=Edge(query_url=url)), house.clock
    )
    assert (
        over_tcp.forward("/v1/usage", "", "acct_a", "")[1]
        == house.client.forward("/v1/usage", "", "acct_a", "")[1]
    )
    assert over_tcp.sql("SELECT 1 AS one")["rows"] == [[1]]


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_without_a_meter_the_client_says_so(clickhouse, tmp_path):
    house = House(tmp_path, clickhouse)
    house.close()
    assert not house.server.socket_path.exists()
    with pytest.raises(QueryUnavailable):
        house.client.health()
    # A socket that a killed process left behind is no meter either.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(house.server.socket_path))
    with pytest.raises(QueryUnavailable):
        house.client.get("/v1/usage", "acct_a")
    # ... and does not keep the next one from listening.
    QueryServer(house.config, create_app(house.store, house.secret, house.clock))


@pytest.mark.part("clickhouse-http")
def test_clickhouse_down_is_503_and_comes_back(tmp_path, own_front):
    from services.backends.clickhouse.client import ClickHouse

    opened = ClickHouse(own_front.url, "t")
    house = House(tmp_path, opened)
    try:
        own_front.kill()
        status, message = house.refused("/v1/usage")
        assert (status, message) == (503, "usage cannot be read now; billing is not affected")
        with pytest.raises(QueryFailed, match="cannot be read now"):
            house.client.sql("SELECT 1")
        own_front.start()
        assert house.get("/v1/usage")["data"] == []
    finally:
        house.close()
        opened.close()


def test_a_path_or_address_that_cannot_be_used_is_a_configuration_error(tmp_path):
    name = Config(data_dir=str(tmp_path), meter=Meter(query_socket="x" * 300))
    place = Config(data_dir=str(tmp_path), meter=Meter(query_socket="/dev/null/socket"))
    listen = Config(data_dir=str(tmp_path), meter=Meter(query_listen="8080"))
    for config in (name, place, listen):
        with pytest.raises(ConfigError, match=r"meter\.query_"):
            QueryServer(config, falcon.App())


def test_a_path_longer_than_an_address_is_listened_on_all_the_same(tmp_path):
    path = f"{'folder/' * 20}socket"
    config = Config(
        data_dir=str(tmp_path), meter=Meter(query_socket=path), edge=Edge(query_url=f"unix:{path}")
    )
    app = falcon.App()
    app.add_sink(lambda req, resp: setattr(resp, "media", {"here": True}))
    server, stop = QueryServer(config, app), threading.Event()
    running = threading.Thread(target=server.run, args=(stop,))
    running.start()
    try:
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o600
        assert QueryClient(config).health() == {"here": True}
        with pytest.raises(ConfigError, match=r"meter\.query_socket: another process listens"):
            QueryServer(config, app)
        assert QueryClient(config).health() == {"here": True}
    finally:
        stop.set()
        running.join(20)
    assert not (tmp_path / path).exists()
