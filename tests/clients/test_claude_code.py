"""The pinned Claude Code through the whole program: answers, tools, retries, and the bill."""

import json

import pytest

from tests.parts.bill import assert_bill_matches
from tests.parts.feature import make_key

pytestmark = pytest.mark.part("claude-code")


def test_says_hello_and_the_bill_equals_the_providers_log(each_stack, claude_code):
    stack = each_stack
    key, before = stack.new_key(), stack.sim.last_id()
    ran = claude_code.ask(stack.base_url, "say hello", ANTHROPIC_API_KEY=key)
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in ran.stdout
    calls = stack.sim.calls(after=before)
    assert calls
    rows = stack.wait_for_rows(len(calls), key)
    assert_bill_matches(rows, calls)
    assert {row["outcome"] for row in rows} == {"completed"}
    assert rows[0]["session_id"]


@pytest.mark.parametrize("style", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_both_credential_styles_below_a_prefix(stack, claude_code, style):
    ran = claude_code.ask(stack.base_url + "/anthropic", "say hello", **{style: stack.key()})
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in ran.stdout


def test_a_tool_turn(each_stack, claude_code):
    stack = each_stack
    key, before = stack.new_key(), stack.sim.last_id()
    prompt = 'sim:tool Bash {"command": "echo tool-says-$((40+2))", "description": "adds"}'
    arguments = ("--allowedTools", "Bash", "--output-format", "json")
    ran = claude_code.ask(stack.base_url, prompt, *arguments, ANTHROPIC_API_KEY=key)
    assert ran.code == 0, ran.stdout + ran.stderr
    told = ran.json()
    assert "tool-says-42" in told["result"]
    calls = stack.sim.calls(after=before)
    assert [call["finish"] for call in calls] == ["tool", "stop"]
    assert calls[1]["units"]["cache_read"] > 10_000  # the first turn's prompt came back unchanged
    rows = stack.wait_for_rows(2, key)
    assert_bill_matches(rows, calls)
    assert told["usage"]["output_tokens"] == sum(row["output_tokens"] for row in rows)
    assert told["usage"]["cache_read_input_tokens"] == sum(r["cache_read_tokens"] for r in rows)


def test_a_file_is_read_by_the_read_tool(stack, claude_code):
    file = claude_code.work / "note.txt"
    file.write_text("the password is swordfish\n")
    prompt = f'sim:tool Read {{"file_path": "{file}"}}'
    ran = claude_code.ask(
        stack.base_url, prompt, "--allowedTools", "Read", ANTHROPIC_API_KEY=stack.key()
    )
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "swordfish" in ran.stdout


@pytest.mark.parametrize("model", ["haiku", "sonnet", "opus", "claude-haiku-4-5-20251001"])
def test_every_model_the_client_offers_has_a_price(stack, claude_code, model):
    ran = claude_code.ask(
        stack.base_url, "say hello", "--model", model, ANTHROPIC_API_KEY=stack.key()
    )
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in ran.stdout


def test_the_client_discovers_the_gateways_models(stack, claude_code):
    settings = {
        "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "",
    }
    key = stack.key()
    ran = claude_code.ask(stack.base_url, "say hello", ANTHROPIC_API_KEY=key, **settings)
    assert ran.code == 0, ran.stdout + ran.stderr
    written = [p.read_text() for p in claude_code.home.rglob("*.json") if p.is_file()]
    found = [json.loads(text) for text in written if stack.base_url in text and "fetchedAt" in text]
    assert found, "the client kept no list of models"
    names = {model["id"] for model in found[0]["models"]}
    assert "claude-haiku-4-5" in names


def test_an_upstream_that_is_overloaded_twice(stack, claude_code):
    key, before = stack.new_key("fault-flaky-2"), stack.sim.last_id()
    ran = claude_code.ask(stack.base_url, "say hello", ANTHROPIC_API_KEY=key)
    assert ran.code == 0, ran.stdout + ran.stderr
    assert "say hello" in ran.stdout
    statuses = [call["status"] for call in stack.sim.calls(after=before)]
    assert statuses == [529, 529, 200]
    rows = stack.wait_for_rows(3, key)  # and refusals while the channel cools down
    assert sum(row["cost_nano"] > 0 for row in rows) == 1


def test_an_upstream_that_breaks_off_costs_nothing_and_the_client_gets_by(stack, claude_code):
    """After a cut stream the client repeats without streaming; both are failures, both free."""
    key = stack.new_key("cli-cut-mid-stream")
    ran = claude_code.ask(
        stack.base_url, "say hello", ANTHROPIC_API_KEY=key, CLAUDE_CODE_MAX_RETRIES="1"
    )
    assert ran.code != 0
    rows = stack.wait_for_rows(1, key)
    assert {row["outcome"] for row in rows} <= {"failed", "refused"}
    assert sum(row["cost_nano"] for row in rows) == 0


def test_a_full_window_is_told_once(stack, claude_code):
    key = make_key(stack, window_1d_nano=1000)[1]
    before = stack.sim.last_id()
    ran = claude_code.ask(stack.base_url, "say hello", ANTHROPIC_API_KEY=key)
    assert ran.code != 0
    assert "rate_limit_1d exceeded" in ran.stdout + ran.stderr
    assert stack.sim.calls(after=before) == []
    assert len(stack.wait_for_rows(1, key)) == 1


def test_an_empty_wallet_is_told_once(stack, claude_code):
    key, before = stack.new_key(usd="0"), stack.sim.last_id()
    ran = claude_code.ask(stack.base_url, "say hello", ANTHROPIC_API_KEY=key)
    assert ran.code != 0
    assert "insufficient_balance" in ran.stdout + ran.stderr
    assert stack.sim.calls(after=before) == []
    assert len(stack.wait_for_rows(1, key)) == 1
