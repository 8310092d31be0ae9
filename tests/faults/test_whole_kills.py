"""kill -9 of every kind of process of a running Tollgate, at each named point of its work: what
was not finished is free, what was finished is billed once, and afterwards the books agree to the
nano. On the embedded default and on Kafka + PostgreSQL."""

import uuid

import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.postgres import postgres_url
from tests.parts.traffic import PATIENT

EDGE_POINTS = {
    # crash point -> outcome of the request that the worker died in (None: no trace of it)
    "edge.before_request": None,
    "outbox.after_append": "abandoned",
    "edge.after_request": "abandoned",
    "edge.mid_stream": "abandoned",
    "edge.before_terminal": "abandoned",
    "edge.after_terminal": "completed",
}
# Books and analytics in turn: what dies again within seconds is started again later each time.
BOOKS_POINTS = (
    "relay.after_send",
    "clickhouse.before_plan",
    "relay.after_mark",
    "clickhouse.planned",
    "ledger.begun",
    "clickhouse.between_tables",
    "ledger.advanced",
    "clickhouse.acked",
    "ledger.applied",
    "clickhouse.done",
    "ledger.posted",
    "ledger.settled",
    "ledger.committed",
)
REAPER_POINTS = ("reaper.after_closing", "reaper.after_seal", "reaper.after_append")


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("cluster", marks=[pytest.mark.part("kafka"), pytest.mark.part("postgres")]),
    ],
    scope="module",
)
def program(request, tmp_path_factory):
    sections = {"edge": PATIENT}
    if request.param == "cluster":
        sections["bus"] = {
            "kind": "kafka",
            "bootstrap": [request.getfixturevalue("kafka_broker").bootstrap],
            "topic_prefix": f"kills{uuid.uuid4().hex[:6]}-",
        }
        sections["database"] = {"url": postgres_url(migrated=False)}
    stack = FaultStack(tmp_path_factory.mktemp("kills"), sections)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def _agrees(program, key: str) -> None:
    told = program.reconcile()
    assert told.exit_code == 0, told.text()
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
