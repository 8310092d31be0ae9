"""Answers and usage are functions of the request body and the seed, nothing else."""

import orjson
import pytest

from services.sim import anthropic, chat, faults, prices, responses
from services.sim.answer import compose
from services.sim.prompt import BadRequest


def answered(dialect, body, seed=0):
    raw = orjson.dumps(body)
    prompt = dialect.read(body, {})
    return prompt, compose(prompt, raw, seed)


def messages_body(**fields):
    return {
        "model": "m",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "hi"}],
        **fields,
    }


def test_the_same_body_gives_the_same_bytes_and_another_seed_another_id():
    first = [e.frame for e in anthropic.events(*answered(anthropic, messages_body()), True)]
    again = [e.frame for e in anthropic.events(*answered(anthropic, messages_body()), True)]
    other = [e.frame for e in anthropic.events(*answered(anthropic, messages_body(), seed=1), True)]
    assert first == again
    assert first != other
    assert first[1:] == other[1:]  # only the ids differ


def test_input_is_the_text_divided_by_four():
    body = messages_body(messages=[{"role": "user", "content": "x" * 4000}])
    assert anthropic.read(body, {}).input.uncached in (1000, 1001)


def block(text, **more):
    return {"type": "text", "text": text, **more}


def test_the_first_turn_writes_the_cache_and_the_second_reads_what_the_first_sent():
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [block("s" * 4000, **mark)]
    user = {"role": "user", "content": [block("u" * 400, **mark)]}
    first = anthropic.read(messages_body(system=system, messages=[user]), {}).input
    assert first.cache_read == 0
    assert first.cache_write_5m >= 1100
    assert (first.uncached, first.cache_write_1h) == (0, 0)

    turn = [user, {"role": "assistant", "content": [block("a" * 800)]}, user]
    second = anthropic.read(messages_body(system=system, messages=turn), {}).input
    assert second.cache_read == first.cache_write_5m
    assert second.cache_write_5m >= 300


def test_the_ttl_of_a_breakpoint_splits_the_writes():
    hour = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    system = [block("s" * 4000, **hour)]
    user = {"role": "user", "content": [block("u" * 400, cache_control={"type": "ephemeral"})]}
    prompt, answer = answered(anthropic, messages_body(system=system, messages=[user]))
    usage = anthropic.usage(prompt, answer)
    assert usage["cache_creation"]["ephemeral_1h_input_tokens"] == 1000
    split = sum(usage["cache_creation"].values())
    assert split == usage["cache_creation_input_tokens"] == prompt.input.total


def test_output_stops_at_max_tokens():
    said = messages_body(max_tokens=10, messages=[{"role": "user", "content": "sim:words 500"}])
    _, answer = answered(anthropic, said)
    assert (answer.finish, answer.output) == ("length", 10)
    assert len(answer.text) == 40


def test_thinking_counts_as_output_and_is_sealed():
    _, answer = answered(anthropic, messages_body(thinking={"type": "adaptive"}))
    assert 0 < answer.reasoning < answer.output
    assert answer.seal.startswith("sim-")


@pytest.mark.parametrize("dialect", [chat, responses])
def test_openai_prompts_are_cached_up_to_the_last_answer(dialect):
    turns = [
        {"role": "user", "content": "q" * 400},
        {"role": "assistant", "content": "a" * 400},
        {"role": "user", "content": "again"},
    ]
    field = "messages" if dialect is chat else "input"
    spent = dialect.read({"model": "m", field: turns}, {}).input
    assert 100 <= spent.cache_read <= 102
    assert spent.uncached >= 100


def test_several_directives_make_parallel_calls():
    tools = [{"name": "a", "input_schema": {}}, {"name": "b", "input_schema": {}}]
    said = 'sim:tool a {"x": 1} and sim:tool b {"y": "two"}'
    body = messages_body(tools=tools, messages=[{"role": "user", "content": said}])
    _, answer = answered(anthropic, body)
    assert [(c.tool.name, orjson.loads(c.arguments)) for c in answer.calls] == [
        ("a", {"x": 1}),
        ("b", {"y": "two"}),
    ]
    assert answer.finish == "tool"


def test_a_tool_result_is_quoted():
    result = {"type": "tool_result", "tool_use_id": "t", "content": "42 degrees"}
    body = messages_body(messages=[{"role": "user", "content": [result]}])
    assert "42 degrees" in answered(anthropic, body)[1].text


def test_a_schema_is_answered_with_an_instance_of_it():
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}, "n": {"type": "integer"}},
    }
    asked = messages_body(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert orjson.loads(answered(anthropic, asked)[1].text) == {"title": "simulated", "n": 1}


def test_a_changed_signature_is_refused():
    prompt, answer = answered(anthropic, messages_body(thinking={"type": "adaptive"}))
    blocks = anthropic.reply(prompt, answer, True)["content"]
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": "go on"},
    ]
    anthropic.read(messages_body(messages=history), {})
    blocks[0]["thinking"] += " (edited)"
    with pytest.raises(BadRequest, match="signature"):
        anthropic.read(messages_body(messages=history), {})


def test_charges_are_exact():
    table = {"m": {"input": prices.Decimal("3"), "output": prices.Decimal("0.15")}}
    charged = prices.charge(table, "m", {"input": 7, "output": 3})
    assert charged == {"input": "0.000021", "output": "0.00000045", "total": "0.00002145"}
    assert prices.charge(table, "unknown", {"input": 7}) is None


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("sim-error-500", ("error", 500)),
        ("sim-429", ("429", 1)),
        ("sim-429-7", ("429", 7)),
        ("sim-200-error-body", ("200-error-body", 0)),
        ("sim-stall-first", ("stall-first", 86_400)),
        ("sim-stall-2", ("stall", 2)),
        ("sim-flaky-3", ("flaky", 3)),
        ("claude-sonnet-4-5", None),
        ("sim-unknown", None),
        ("slow", None),
    ],
)
def test_a_fault_is_chosen_by_model(model, fault):
    assert faults.find(model, "", "/v1/messages") == fault


def test_a_fault_is_chosen_by_header_and_by_path():
    assert faults.find("claude", "529", "/v1/messages") == ("529", 0)
    assert faults.find("claude", "", "/fault/sim-slow-20/v1/messages") == ("slow", 20)


def test_a_tool_schema_may_have_a_property_named_type():
    schema = {"type": "object", "properties": {"type": {"type": "string"}}}
    body = messages_body(tools=[{"name": "a", "input_schema": schema}])
    assert anthropic.read(body, {}).input.uncached > 10


def test_a_shell_directive_takes_the_shell_that_is_offered():
    shell = {
        "type": "namespace",
        "name": "functions",
        "tools": [{"type": "custom", "name": "exec"}],
    }
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [shell]},
        {"role": "user", "content": "sim:shell echo hi"},
    ]
    prompt, answer = answered(responses, {"model": "m", "input": items})
    call = responses.reply(prompt, answer, True)["output"][-1]
    assert (call["type"], call["name"], call["namespace"]) == (
        "custom_tool_call",
        "exec",
        "functions",
    )
    assert call["input"] == 'text(await tools.exec_command({"cmd": "echo hi"}))'
