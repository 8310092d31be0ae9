"""Kafka stops under traffic: the edge keeps serving, everything arrives afterwards, once.

`TOLLGATE_TEST_OUTAGE_S` sets the length (default 15 s, so that the suite stays short)."""

import os
import time
import uuid

import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.kafka import make_broker
from tests.parts.postgres import postgres_url
from tests.parts.traffic import PATIENT, Clients

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
        "edge": PATIENT,
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


def test_the_edge_serves_through_an_outage_and_nothing_is_lost(broker, program):
    clients = Clients(program, program.new_key())
    with clients.asking():
        clients.wait_served(20)
        broker.kill()
        before = clients.served
        time.sleep(OUTAGE_S)
        during = clients.served - before
        broker.start()
        clients.wait_served(20)
    assert during > OUTAGE_S, f"only {during} answers in {OUTAGE_S} s without Kafka"
    clients.check_billed_once()
    print(f"outage {OUTAGE_S} s: {during} answers during it, {clients.served} in all, billed once")
