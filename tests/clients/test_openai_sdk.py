"""The official openai SDK through the whole program: chat completions and responses."""

import openai
import pytest

from tests import conftest
from tests.parts.bill import assert_bill_matches

pytestmark = pytest.mark.part("openai-sdk")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK = 'sim:tool weather {"city": "Oslo"}'
MODEL = "gpt-5-mini"


def make(stack, key):
    conftest.PARTS["openai-sdk"] = openai.__version__
    return openai.OpenAI(base_url=stack.base_url + "/v1", api_key=key, max_retries=0)


@pytest.fixture
def gpt(stack):
    return make(stack, stack.key())


def user(text):
    return [{"role": "user", "content": text}]


def test_chat_in_three_ways_and_the_bill_equals_the_log(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    create = make(stack, key).chat.completions.create
    asked = {"model": MODEL, "messages": user("say hello"), "reasoning_effort": "low"}
    whole = create(**asked)
    told = list(create(**asked, stream=True, stream_options={"include_usage": True}))
    plain = list(create(**asked, stream=True))
    for chunks in (told, plain):
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
    assert told[-1].usage.total_tokens == whole.usage.total_tokens
    assert [c.usage for c in told[:-1]] == [None] * (len(told) - 1)
    assert all(c.usage is None and c.choices for c in plain)
    assert_bill_matches(stack.wait_for_rows(3, key), stack.sim.calls(after=before))


def test_chat_tools_take_two_rounds(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    gpt = make(stack, key)
    function = {"name": "weather", "parameters": WEATHER}
    asked = {"model": MODEL, "tools": [{"type": "function", "function": function}]}
    with gpt.chat.completions.stream(**asked, messages=user(ASK)) as stream:
        stream.until_done()
        first = stream.get_final_completion().choices[0]
    call = first.message.tool_calls[0]
    assert (first.finish_reason, call.function.name) == ("tool_calls", "weather")
    function = {"name": call.function.name, "arguments": call.function.arguments}
    calls = [{"id": call.id, "type": "function", "function": function}]
    turns = [*user(ASK), {"role": "assistant", "tool_calls": calls}]
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    second = gpt.chat.completions.create(**asked, messages=[*turns, result])
    assert "rain" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert_bill_matches(stack.wait_for_rows(2, key), stack.sim.calls(after=before))


def test_two_choices_are_both_billed(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    answer = make(stack, key).chat.completions.create(model=MODEL, messages=user("hi"), n=2)
    assert len(answer.choices) == 2
    assert_bill_matches(stack.wait_for_rows(1, key), stack.sim.calls(after=before))


def test_responses_json_and_stream_agree_and_the_bill_equals_the_log(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    gpt = make(stack, key)
    asked = {
        "model": MODEL,
        "input": "say hello",
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }
    whole = gpt.responses.create(**asked)
    with gpt.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    assert streamed.output_text == whole.output_text != ""
    assert streamed.output[0].encrypted_content == whole.output[0].encrypted_content
    rows = stack.wait_for_rows(2, key)
    assert_bill_matches(rows, stack.sim.calls(after=before))
    assert rows[0]["reasoning_tokens"] == whole.usage.output_tokens_details.reasoning_tokens > 0


def test_responses_tools_take_two_rounds(gpt):
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    first = gpt.responses.create(model=MODEL, tools=tools, input=ASK)
    call = first.output[-1]
    assert (call.type, call.name) == ("function_call", "weather")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    calls = [item.model_dump(exclude_none=True) for item in first.output]
    second = gpt.responses.create(model=MODEL, tools=tools, input=[*user(ASK), *calls, result])
    assert "rain" in second.output_text


def test_an_incomplete_response_is_billed(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    gpt = make(stack, key)
    cut = gpt.responses.create(model=MODEL, input="sim:words 100", max_output_tokens=20)
    assert (cut.status, cut.usage.output_tokens) == ("incomplete", 20)
    events = list(
        gpt.responses.create(model=MODEL, input="sim:words 99", max_output_tokens=20, stream=True)
    )
    assert events[-1].type == "response.incomplete"
    assert_bill_matches(stack.wait_for_rows(2, key), stack.sim.calls(after=before))


def test_models(gpt):
    names = [model.id for model in gpt.models.list()]
    assert MODEL in names
    assert gpt.models.retrieve(MODEL).owned_by == "openai"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("error-400", openai.BadRequestError),
        ("error-404", openai.NotFoundError),
        ("429-7", openai.RateLimitError),
        ("error-500", openai.InternalServerError),
    ],
)
def test_upstream_errors_are_typed(stack, fault, error):
    client = make(stack, stack.new_key(f"sdk-{fault}"))
    with pytest.raises(error):
        client.chat.completions.create(model=MODEL, messages=user("hi"))


def test_refusals_are_typed(stack, gpt):
    with pytest.raises(openai.AuthenticationError) as raised:
        make(stack, "sk-toll-nobody").chat.completions.create(model=MODEL, messages=user("hi"))
    assert raised.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        gpt.responses.create(model="gpt-none", input="hi")
    with pytest.raises(openai.BadRequestError) as bad:
        gpt.chat.completions.create(model=MODEL, messages=[])
    assert bad.value.param == "messages"
    with pytest.raises(openai.APIStatusError) as poor:
        make(stack, stack.new_key(usd="0")).responses.create(model=MODEL, input="hi")
    assert (poor.value.status_code, poor.value.code) == (402, "insufficient_balance")


def test_broken_streams_are_told(stack):
    client = make(stack, stack.new_key("sdk-cut-mid-stream"))
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=MODEL, messages=user("hi there"), stream=True))
    events = list(client.responses.create(model=MODEL, input="hi there", stream=True))
    assert events[-1].type == "response.failed"
