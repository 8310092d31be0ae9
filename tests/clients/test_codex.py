"""The pinned Codex through the whole program: answers, tools, refusals, and the bill."""

import pytest

from tests.parts.bill import assert_bill_matches
from tests.parts.feature import make_key

pytestmark = pytest.mark.part("codex")


def message_of(ran) -> str:
    said = [line["item"] for line in ran.lines() if line["type"] == "item.completed"]
    return "\n".join(item["text"] for item in said if item["type"] == "agent_message")


def test_says_hello_and_the_bill_equals_the_providers_log(each_stack, codex):
    stack = each_stack
    key, before = stack.new_key(), stack.sim.last_id()
    ran = codex.ask(stack.base_url + "/v1", key, "say hello")
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in message_of(ran)
    calls = stack.sim.calls(after=before)
    rows = stack.wait_for_rows(len(calls), key)
    assert_bill_matches(rows, calls)
    usage = ran.lines()[-1]["usage"]
    assert usage["output_tokens"] == rows[0]["output_tokens"]
    assert usage["reasoning_output_tokens"] == rows[0]["reasoning_tokens"] > 0


def test_a_tool_turn(each_stack, codex):
    stack = each_stack
    key, before = stack.new_key(), stack.sim.last_id()
    ran = codex.ask(stack.base_url + "/v1", key, "sim:shell echo tool-says-$((40+2))")
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "tool-says-42" in message_of(ran)
    calls = stack.sim.calls(after=before)
    assert [call["finish"] for call in calls] == ["tool", "stop"]
    assert calls[1]["units"]["cache_read"] > 5_000
    rows = stack.wait_for_rows(2, key)
    assert_bill_matches(rows, calls)
    assert len({row["session_id"] for row in rows}) == 1


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-5-mini"])
def test_other_models_and_a_prefix(stack, codex, model):
    ran = codex.ask(
        stack.base_url + "/openai/v1", stack.key(), "sim:shell echo ok-$((1+1))", "-m", model
    )
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "ok-2" in message_of(ran)


def test_an_empty_wallet_makes_one_attempt(stack, codex):
    key, before = stack.new_key(usd="0"), stack.sim.last_id()
    ran = codex.ask(stack.base_url + "/v1", key, "say hello")
    assert ran.code != 0
    assert "insufficient_balance" in ran.stdout
    assert stack.sim.calls(after=before) == []
    rows = stack.wait_for_rows(1, key)
    assert [(row["status"], row["error_code"]) for row in rows] == [(400, "insufficient_balance")]


def test_a_full_window_stops_it_at_once_and_names_the_time(stack, codex):
    key = make_key(stack, window_5h_nano=1000)[1]
    before = stack.sim.last_id()
    ran = codex.ask(stack.base_url + "/v1", key, "say hello")
    assert ran.code != 0
    assert ran.took_s < 15
    assert "usage limit" in ran.stdout
    assert stack.sim.calls(after=before) == []
    rows = stack.wait_for_rows(1, key)
    assert [(row["status"], row["error_code"]) for row in rows] == [(429, "rate_limit_exceeded")]


def test_a_websocket_attempt_falls_back_at_once(stack, codex):
    key = stack.new_key()
    websocket = "model_providers.tollgate.supports_websockets=true"
    ran = codex.ask(stack.base_url + "/v1", key, "say hello", "-c", websocket)
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in message_of(ran)
    assert ran.took_s < 15
    assert [row["outcome"] for row in stack.wait_for_rows(1, key)] == ["completed"]


def test_a_stream_without_an_end_is_repeated_and_free(stack, codex):
    key = stack.new_key("cli-cut-mid-stream")
    ran = codex.ask(
        stack.base_url + "/v1",
        key,
        "say hello",
        "-c",
        "model_providers.tollgate.stream_max_retries=1",
    )
    assert ran.code != 0
    rows = stack.wait_for_rows(1, key)
    assert {row["outcome"] for row in rows} <= {"failed", "refused"}
    assert sum(row["cost_nano"] for row in rows) == 0


def test_a_silent_upstream_does_not_lose_the_client(stack, codex):
    """The idle timer of the client is shorter than the silence: only real events keep it."""
    limit = "model_providers.tollgate.stream_idle_timeout_ms=1000"
    ran = codex.ask(stack.base_url + "/v1", stack.key("slow"), "say hello", "-c", limit)
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in message_of(ran)
