"""Batches under kill -9 of the batch service and of the edge at named points, on both databases."""

import hashlib
import json
from collections import Counter

import anthropic
import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.feature import wait_until
from tests.parts.postgres import POSTGRES, SQLITE, postgres_url

LINES = 10
AT_ONCE = 4
POINTS = (
    "batch.line.sending",
    "batch.line.answered",
    "batch.line.committed",
    "batch.file.before_commit",
    "edge.before_request",
    "edge.after_terminal",
)


@pytest.fixture(scope="module", params=[SQLITE, POSTGRES])
def faulty(request, tmp_path_factory):
    sections = {"batch": {"claim_s": 1.0, "poll_s": 0.05, "account_lines": AT_ONCE}}
    if request.param == "postgres":
        sections["database"] = {"url": postgres_url(migrated=False)}
    stack = FaultStack(tmp_path_factory.mktemp("batches"), sections)
    try:
        stack.start()
        yield stack
    finally:
        code = stack.stop()
    assert code == 0, stack.output.read_text()[-4000:]


def message(name):
    return {
        "custom_id": name,
        "params": {
            "model": "claude-haiku-4-5",
            "max_tokens": 32,
            "messages": [{"role": "user", "content": name}],
        },
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_at_any_point_repeats_loses_and_doubles_no_line(faulty):
    key = faulty.key()
    sdk = anthropic.Anthropic(base_url=faulty.base_url, api_key=key, max_retries=5)
    results, batches = {}, {}
    for point in POINTS:
        names = [f"{point.replace('.', '_')}-{i}" for i in range(LINES)]
        faulty.order(point)
        made = sdk.messages.batches.create(requests=[message(name) for name in names])
        wait_until(lambda point=point: not faulty.ordered(point), 60, lambda point=point: point)
        wait_until(
            lambda made=made: sdk.messages.batches.retrieve(made.id).processing_status == "ended",
            60,
        )
        told = list(sdk.messages.batches.results(made.id))
        assert [each.custom_id for each in told] == names  # each line has exactly one result
        results |= {each.custom_id: each.result for each in told}
        batches[point] = made.id.removeprefix("msgbatch_")
    lost, said = Counter(), {}
    for name, result in results.items():
        if result.type != "succeeded":
            why, _, words = result.error.error.message.partition(": ")
            assert why in ("answer_lost", "interrupted", "request_failed"), (name, result)
            said[name] = "It was charged" in words, "It was not charged" in words
            lost[name.partition("-")[0]] += 1
    assert all(count <= AT_ONCE for count in lost.values()), lost
    assert lost["batch_line_answered"] >= 1
    assert lost["batch_file_before_commit"] == 0
    told = faulty.reconcile()
    assert told.exit_code == 0, told.text()
    calls = Counter(call["body_sha256"] for call in faulty.sim.calls())
    rows = faulty.sql(
        "SELECT tags['batch'] AS batch, tags['line'] AS line, "
        "countIf(billed) AS billed FROM usage GROUP BY batch, line"
    )
    billed = {(row["batch"], int(row["line"])): int(row["billed"]) for row in rows}
    for point in POINTS:
        for no in range(1, LINES + 1):
            name = f"{point.replace('.', '_')}-{no - 1}"
            body = json.dumps(message(name)["params"], separators=(",", ":")).encode()
            made = calls[hashlib.sha256(body).hexdigest()]
            paid = billed.get((batches[point], no), 0)
            if results[name].type == "succeeded":
                assert (made, paid) == (1, 1), name
            else:
                assert made <= 1, name
                assert paid <= made, name
                assert said[name] in ((False, False), (paid == 1, paid == 0)), (name, said[name])
