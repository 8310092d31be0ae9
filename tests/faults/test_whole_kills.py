"""kill -9 of every kind of process of a running Tollgate, at each named point of its work: what
was not finished is free, what was finished is billed once, and afterwards the books agree to the
nano. On the embedded default and on Kafka + PostgreSQL."""

import uuid

import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.kafka import kafka_broker  # noqa: F401
from tests.parts.postgres import postgres_url

EDGE_POINTS = {
    # crash point -> outcome of the request that the worker died in (None: no trace of it)
    "edge.before_request": None,
    "outbox.after_append": "abandoned",
    "edge.after_request": "abandoned",
    "edge.mid_stream": "abandoned",
    "edge.before_terminal": "abandoned",
    "edge.after_terminal": "completed",
}
BOOKS_POINTS = (
    "relay.after_send",
    "relay.after_mark",
    "ledger.begun",
    "ledger.advanced",
    "ledger.applied",
    "ledger.posted",
    "ledger.settled",
    "ledger.committed",
    "clickhouse.before_plan",
    "clickhouse.planned",
    "clickhouse.between_tables",
    "clickhouse.acked",
    "clickhouse.done",
)
REAPER_POINTS = ("reaper.after_closing", "reaper.after_seal", "reaper.after_append")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    yield from _running(FaultStack(tmp_path_factory.mktemp("kills")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, kafka_broker):  # noqa: F811
    sections = {
        "bus": {
            "kind": "kafka",
            "bootstrap": [kafka_broker.bootstrap],
            "topic_prefix": f"kills{uuid.uuid4().hex[:6]}-",
        },
        "database": {"url": postgres_url(migrated=False)},
    }
    yield from _running(FaultStack(tmp_path_factory.mktemp("cluster-kills"), sections))


def _running(stack):
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("cluster", marks=[pytest.mark.part("kafka"), pytest.mark.part("postgres")]),
    ],
    scope="module",
)
def program(request):
    return request.getfixturevalue(request.param)


def _agrees(program, key: str) -> None:
    told = program.reconcile()
    assert told.returncode == 0, told.stdout + told.stderr
    rows = program.usage_rows(key)
    for row in rows:
        assert (row["cost_nano"] > 0) == (row["outcome"] == "completed"), row
    spent = program.get("/v1/balance", key)["lifetime_spent_usd"]
    assert round(spent * 1e9) == sum(row["cost_nano"] for row in rows)


@pytest.mark.parametrize("point", EDGE_POINTS)
def test_a_killed_worker_bills_only_what_was_finished(program, point):
    key = program.new_key()
    answered = program.crash(point, key, stream=True)
    program.wait_ready()
    while program.ask(key) is None:
        pass
    wanted = ["completed"] * (answered + 1) + [name for name in [EDGE_POINTS[point]] if name]
    rows = program.outcomes(key, len(wanted))
    assert sorted(row["outcome"] for row in rows) == sorted(wanted)
    _agrees(program, key)


@pytest.mark.parametrize("point", BOOKS_POINTS)
def test_killed_books_post_everything_once(program, point):
    key = program.new_key()
    answered = program.crash(point, key)
    rows = program.outcomes(key, answered)
    assert [row["outcome"] for row in rows] == ["completed"] * answered
    _agrees(program, key)


@pytest.mark.parametrize("point", REAPER_POINTS)
def test_a_reaper_killed_half_way_is_finished_by_the_next(program, point):
    key = program.new_key()
    program.order(point)
    answered = program.crash("edge.mid_stream", key, stream=True)
    rows = program.outcomes(key, answered + 1)
    assert [row["outcome"] for row in rows].count("abandoned") == 1
    assert not program.ordered(point), f"nothing passed {point}"
    _agrees(program, key)
