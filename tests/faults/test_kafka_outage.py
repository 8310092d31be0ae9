"""Kafka stops under traffic: the edge keeps serving, everything arrives afterwards, once.

`TOLLGATE_TEST_OUTAGE_S` sets the length (default 15 s, so that the suite stays short)."""

import os
import threading
import time
import uuid

import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.kafka import make_broker
from tests.parts.postgres import postgres_url

OUTAGE_S = float(os.environ.get("TOLLGATE_TEST_OUTAGE_S", "15"))

pytestmark = [
    pytest.mark.part("kafka"),
    pytest.mark.part("postgres"),
    pytest.mark.timeout(240 + 4 * int(OUTAGE_S)),
]


@pytest.fixture
def broker(tmp_path):
    made = make_broker(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def program(tmp_path_factory, broker):
    sections = {
        "bus": {
            "kind": "kafka",
            "bootstrap": [broker.bootstrap],
            "topic_prefix": f"outage{uuid.uuid4().hex[:6]}-",
        },
        "database": {"url": postgres_url(migrated=False)},
    }
    stack = FaultStack(tmp_path_factory.mktemp("outage"), sections)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


class Traffic(threading.Thread):
    """Sends one request after the other until told to stop."""

    def __init__(self, program, key):
        super().__init__(daemon=True)
        self.program, self.key = program, key
        self.served = 0
        self.refused: list[str] = []
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            reply = self.program.ask(self.key, stream=self.served % 2 == 0)
            if reply is not None and reply.status_code == 200:
                self.served += 1
            else:
                self.refused.append("died" if reply is None else reply.text[:200])
            time.sleep(0.05)


def test_the_edge_serves_through_an_outage_and_nothing_is_lost(broker, program):
    key = program.new_key()
    traffic = [Traffic(program, key) for _ in range(3)]
    for each in traffic:
        each.start()
    time.sleep(2)
    broker.kill()
    before = sum(each.served for each in traffic)
    time.sleep(OUTAGE_S)
    during = sum(each.served for each in traffic) - before
    broker.start()
    time.sleep(2)
    for each in traffic:
        each.over.set()
        each.join(30)
    served = sum(each.served for each in traffic)
    assert [text for each in traffic for text in each.refused] == []
    assert during > OUTAGE_S, f"only {during} answers in {OUTAGE_S} s without Kafka"
    rows = program.outcomes(key, served, timeout_s=90)
    assert len(rows) == served
    assert {row["outcome"] for row in rows} == {"completed"}
    told = program.reconcile()
    assert told.returncode == 0, told.stdout + told.stderr
    spent = program.get("/v1/balance", key)["lifetime_spent_usd"]
    assert round(spent * 1e9) == sum(row["cost_nano"] for row in rows)
    print(f"outage {OUTAGE_S} s: {during} answers during it, {served} in all, each billed once")
