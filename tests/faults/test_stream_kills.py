"""A worker killed at each of twenty places of a stream: whatever was sent by then is free, and the
money that was held is back."""

import json

import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.traffic import PATIENT
from tests.parts.wire import PATHS, request, text_body

PLACES = 20


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    running = FaultStack(
        tmp_path_factory.mktemp("stream-kills"), {"edge": {**PATIENT, "workers": 1}}
    )
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.mark.timeout(300)
def test_a_stream_killed_at_any_chunk_is_free(program):
    """The order to die is given when the client has so many reads of its stream."""
    key = program.new_key("slow-3")
    for place in range(PLACES):
        got = _broken_stream(program, key, place)
        assert b"message_stop" not in got, place
        program.wait_ready(60)
    rows = program.outcomes(key, PLACES)
    assert [row["outcome"] for row in rows] == ["abandoned"] * PLACES
    assert {row["cost_nano"] for row in rows} == {0}
    balance = program.get("/v1/balance", key)
    assert balance["lifetime_spent_usd"] == 0, json.dumps(balance)
    told = program.reconcile()
    assert told.exit_code == 0, told.text()


def _broken_stream(program, key: str, place: int) -> bytes:
    body = text_body("anthropic", stream=True, text="sim:words 6000", max_tokens=12_000)
    reply = request(program.port, "POST", PATHS["anthropic"], key=key, body=body)
    got = b""
    if place == 0:
        program.order("edge.mid_stream")
    for number, (_, data) in enumerate(reply.reads(), 1):
        got += data
        if number == place:
            program.order("edge.mid_stream")
    reply.close()
    assert not reply.whole
    return got
