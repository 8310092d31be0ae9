"""The official anthropic SDK through the whole program."""

import anthropic
import pytest

from tests import conftest
from tests.parts.bill import assert_bill_matches

pytestmark = pytest.mark.part("anthropic-sdk")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK = 'sim:tool weather {"city": "Oslo"}'
MODEL = "claude-haiku-4-5"


def make(stack, key, **more):
    conftest.PARTS["anthropic-sdk"] = anthropic.__version__
    return anthropic.Anthropic(base_url=stack.base_url, api_key=key, max_retries=0, **more)


@pytest.fixture
def claude(stack):
    return make(stack, stack.key())


def user(text):
    return [{"role": "user", "content": text}]


def test_json_stream_and_thinking_agree_and_the_bill_equals_the_log(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    client = make(stack, key)
    hour = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    asked = {
        "model": MODEL,
        "max_tokens": 2000,
        "system": [{"type": "text", "text": "rule " * 500, **hour}],
        "messages": user(
            [{"type": "text", "text": "say hello", "cache_control": {"type": "ephemeral"}}]
        ),
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[1].text == whole.content[1].text
    assert streamed.content[0].signature == whole.content[0].signature
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    rows = stack.wait_for_rows(2, key)
    assert_bill_matches(rows, stack.sim.calls(after=before))
    created = whole.usage.cache_creation
    assert rows[0]["cache_write_1h_tokens"] == created.ephemeral_1h_input_tokens > 500
    assert rows[0]["cache_write_5m_tokens"] == created.ephemeral_5m_input_tokens > 0


def test_tools_take_two_rounds_and_keep_the_signature(claude):
    tools = [{"name": "weather", "description": "tells", "input_schema": WEATHER}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    asked = {"model": MODEL, "max_tokens": 2000, "tools": tools, "thinking": thinking}
    with claude.messages.stream(**asked, messages=user(ASK)) as stream:
        first = stream.get_final_message()
    call = first.content[-1]
    assert (first.stop_reason, call.input) == ("tool_use", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    turns = [*user(ASK), {"role": "assistant", "content": first.content}]
    second = claude.messages.create(
        **asked, messages=[*turns, {"role": "user", "content": [result]}]
    )
    assert "rain" in second.content[-1].text


def test_count_tokens_is_free(stack):
    key = stack.new_key()
    counted = make(stack, key).messages.count_tokens(model=MODEL, messages=user("one two three"))
    assert counted.input_tokens > 0
    assert stack.get("/v1/balance", key)["available_usd"] in (100, 100.0, "100.00")


def test_models(claude):
    page = claude.models.list(limit=5)
    assert len(page.data) == 5
    assert page.has_more
    names = [model.id for model in claude.models.list(limit=1000)]
    assert MODEL in names
    assert claude.models.retrieve(MODEL).id == MODEL


def test_a_bearer_token_works(stack):
    client = make(stack, None, auth_token=stack.key())
    assert client.messages.create(model=MODEL, max_tokens=50, messages=user("hi")).content


def test_max_tokens_is_honoured_and_billed(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    cut = make(stack, key).messages.create(
        model=MODEL, max_tokens=10, messages=user("sim:words 100")
    )
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 10)
    assert_bill_matches(stack.wait_for_rows(1, key), stack.sim.calls(after=before))


def test_a_web_search_is_billed(stack):
    key, before = stack.new_key(), stack.sim.last_id()
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    answer = make(stack, key).messages.create(
        model=MODEL, max_tokens=50, tools=tools, messages=user("sim:search 2")
    )
    assert answer.usage.server_tool_use.web_search_requests == 2
    rows = stack.wait_for_rows(1, key)
    assert rows[0]["units"]["web_search"] == 2
    assert_bill_matches(rows, stack.sim.calls(after=before))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("error-400", anthropic.BadRequestError),
        ("error-404", anthropic.NotFoundError),
        ("429-7", anthropic.RateLimitError),
        ("error-500", anthropic.InternalServerError),
    ],
)
def test_upstream_errors_are_typed(stack, fault, error):
    client = make(stack, stack.new_key(f"sdk-{fault}"))
    with pytest.raises(error):
        client.messages.create(model=MODEL, max_tokens=9, messages=user("hi"))


def test_refusals_are_typed(stack, claude):
    with pytest.raises(anthropic.AuthenticationError):
        make(stack, "sk-toll-nobody").messages.create(
            model=MODEL, max_tokens=9, messages=user("hi")
        )
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude-none", max_tokens=9, messages=user("hi"))
    with pytest.raises(anthropic.BadRequestError, match=r"messages"):
        claude.messages.create(model=MODEL, max_tokens=9, messages=[])
    with pytest.raises(anthropic.APIStatusError, match="insufficient_balance") as raised:
        make(stack, stack.new_key(usd="0")).messages.create(
            model=MODEL, max_tokens=9, messages=user("hi")
        )
    assert raised.value.status_code == 402


def test_a_broken_stream_raises(stack):
    client = make(stack, stack.new_key("sdk-cut-mid-stream"))
    with (
        pytest.raises(anthropic.APIStatusError),
        client.messages.stream(model=MODEL, max_tokens=99, messages=user("hi there")) as stream,
    ):
        stream.get_final_message()
