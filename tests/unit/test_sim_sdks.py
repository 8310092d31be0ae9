"""The official SDKs read the simulated provider's answers and streams, in each dialect."""

import anthropic
import openai
import pytest

from tests import conftest
from tests.parts.sim import sim

__all__ = ["sim"]
anthropic_sdk = pytest.mark.part("anthropic-sdk")
openai_sdk = pytest.mark.part("openai-sdk")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK = 'sim:tool weather {"city": "Oslo, north of the river"}'


@pytest.fixture
def claude(sim):
    conftest.PARTS["anthropic-sdk"] = anthropic.__version__
    return anthropic.Anthropic(base_url=sim.base_url, api_key="sk-1", max_retries=0)


@pytest.fixture
def gpt(sim):
    conftest.PARTS["openai-sdk"] = openai.__version__
    return openai.OpenAI(base_url=sim.base_url + "/v1", api_key="sk-1", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


@anthropic_sdk
def test_messages_stream_equals_the_json_answer(claude):
    asked = {
        "model": "claude-x",
        "max_tokens": 2000,
        "messages": user("say hello"),
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_message()
    assert [b.type for b in streamed.content] == ["thinking", "text"]
    assert streamed.content[1].text == whole.content[1].text
    assert streamed.content[0].signature == whole.content[0].signature
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 0
    assert {"thinking", "text", "message_stop"} <= kinds


@anthropic_sdk
def test_messages_tools_take_two_rounds(claude):
    tools = [{"name": "weather", "description": "tells", "input_schema": WEATHER}]
    asked = {"model": "claude-x", "max_tokens": 500, "tools": tools}
    with claude.messages.stream(**asked, messages=user(ASK)) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.input == {"city": "Oslo, north of the river"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    history = [*user(ASK), {"role": "assistant", "content": first.content}]
    second = claude.messages.create(
        **asked, messages=[*history, {"role": "user", "content": [result]}]
    )
    assert "rain" in second.content[0].text


@anthropic_sdk
def test_count_tokens_equals_the_input_that_is_charged(claude):
    counted = claude.messages.count_tokens(model="claude-x", messages=user("one two three"))
    spent = claude.messages.create(model="claude-x", max_tokens=9, messages=user("one two three"))
    assert counted.input_tokens == spent.usage.input_tokens > 0


@anthropic_sdk
@openai_sdk
def test_models_lists(claude, gpt):
    assert (
        [m.id for m in claude.models.list()] == [m.id for m in gpt.models.list()] == ["sim-small"]
    )


@openai_sdk
def test_chat_stream_with_usage_equals_the_json_answer(gpt):
    asked = {"model": "gpt-x", "messages": user("say hello")}
    whole = gpt.chat.completions.create(**asked)
    chunks = list(
        gpt.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    plain = list(gpt.chat.completions.create(**asked, stream=True))
    assert all(c.usage is None for c in plain)
    assert len(plain) == len(chunks) - 1


@openai_sdk
def test_chat_tools_take_two_rounds(gpt):
    function = {"name": "weather", "parameters": WEATHER}
    asked = {"model": "gpt-x", "tools": [{"type": "function", "function": function}]}
    with gpt.chat.completions.stream(**asked, messages=user(ASK)) as stream:
        stream.until_done()
        first = stream.get_final_completion().choices[0]
    assert first.finish_reason == "tool_calls"
    call = first.message.tool_calls[0]
    assert "Oslo" in call.function.arguments
    asking = {
        "role": "assistant",
        "tool_calls": [call.model_dump(exclude={"function": {"parsed_arguments"}})],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    second = gpt.chat.completions.create(**asked, messages=[*user(ASK), asking, result])
    assert "rain" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0


@openai_sdk
def test_responses_stream_equals_the_json_answer(gpt):
    asked = {
        "model": "gpt-x",
        "input": "say hello",
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    }
    whole = gpt.responses.create(**asked)
    with gpt.responses.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert streamed.output_text == whole.output_text != ""
    assert streamed.usage.output_tokens_details.reasoning_tokens > 0
    assert streamed.output[0].encrypted_content == whole.output[0].encrypted_content
    assert events[-1].type == "response.completed"


@openai_sdk
def test_responses_sequence_numbers_are_dense(gpt):
    events = list(gpt.responses.create(model="gpt-x", input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))


@openai_sdk
def test_responses_tools_take_two_rounds(gpt):
    tools = [
        {"type": "function", "name": "weather", "parameters": WEATHER, "strict": False},
        {"type": "custom", "name": "patch", "format": {"type": "text"}},
    ]
    said = ASK + ' sim:tool patch {"input": "*** Begin"}'
    first = gpt.responses.create(model="gpt-x", tools=tools, input=said)
    assert [item.type for item in first.output] == ["function_call", "custom_tool_call"]
    assert first.output[1].input == "*** Begin"
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}
    calls = [item.model_dump(exclude_none=True) for item in first.output]
    second = gpt.responses.create(model="gpt-x", tools=tools, input=[*user(said), *calls, result])
    assert "rain" in second.output_text


@openai_sdk
def test_responses_cut_at_the_limit_are_incomplete(gpt):
    cut = gpt.responses.create(model="gpt-x", input="sim:words 500", max_output_tokens=20)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.usage.output_tokens == 20


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (500, anthropic.InternalServerError),
    ],
)
@anthropic_sdk
def test_errors_are_typed_by_the_anthropic_sdk(claude, status, error):
    with pytest.raises(error) as raised:
        claude.messages.create(model=f"sim-error-{status}", max_tokens=9, messages=user("hi"))
    assert raised.value.status_code == status


@openai_sdk
def test_errors_are_typed_by_the_openai_sdk(gpt):
    with pytest.raises(openai.RateLimitError) as raised:
        gpt.chat.completions.create(model="sim-429-7", messages=user("hi"))
    assert raised.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.BadRequestError) as bad:
        gpt.responses.create(model="gpt-x", input=[])
    assert bad.value.param == "input"
    asked = {"model": "sim-error-mid-stream", "stream": True}
    with pytest.raises(openai.APIError, match="Overloaded"):
        list(gpt.chat.completions.create(**asked, messages=user("say hello")))
    assert list(gpt.responses.create(**asked, input="say hello"))[-1].type == "error"
