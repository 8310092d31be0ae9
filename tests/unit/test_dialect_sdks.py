"""The vendors' own SDKs read what we relay, put in and render: pings, errors, edited streams."""

import anthropic
import httpx2
import openai
import pytest

from schemas.errors import Code
from services.core.dialects import DIALECTS
from services.core.framing import events
from services.core.usage import from_anthropic, from_chat, from_responses
from tests import conftest
from tests.parts import streams

anthropic_sdk = pytest.mark.part("anthropic-sdk")
openai_sdk = pytest.mark.part("openai-sdk")
SAY = [{"role": "user", "content": "hi"}]
TEXTS = ["Hello", " there", ' "quoted"\n', " é😀"]
SAID = "".join(TEXTS)


def transport(body, status=200):
    kind = "text/event-stream" if status == 200 else "application/json"
    reply = httpx2.Response(status, headers={"content-type": kind}, content=body)
    return httpx2.Client(transport=httpx2.MockTransport(lambda request: reply))


def claude(body, status=200):
    conftest.PARTS["anthropic-sdk"] = anthropic.__version__
    client = transport(body, status)
    return anthropic.Anthropic(api_key="k", base_url="http://x", http_client=client, max_retries=0)


def gpt(body, status=200):
    conftest.PARTS["openai-sdk"] = openai.__version__
    client = transport(body, status)
    return openai.OpenAI(api_key="k", base_url="http://x/v1", http_client=client, max_retries=0)


def scan_of(name, body):
    dialect = DIALECTS[name]
    return dialect.scan(dialect.parse_request(body, {}))


MESSAGES = b'{"model":"m","max_tokens":9,"stream":true,"messages":[{}]}'
CHAT = b'{"model":"m","stream":true,"messages":[{}]}'
RESPONSES = b'{"model":"m","stream":true,"input":"x"}'


def relayed_with_pings(scan, stream):
    out = b""
    for event in events(stream):
        out += scan.feed(event) + (b"" if scan.finished else scan.ping())
    return out + scan.close()


def ask_messages(client):
    return client.messages.stream(model="claude-x", max_tokens=9, messages=SAY)


@anthropic_sdk
def test_messages_with_pings():
    scan = scan_of("anthropic", MESSAGES)
    body = relayed_with_pings(scan, streams.anthropic_stream(TEXTS))
    assert body.count(b"event: ping") > len(TEXTS)
    with ask_messages(claude(body)) as stream:
        message = stream.get_final_message()
    assert message.content[0].text == SAID
    assert message.stop_reason == scan.finish_reason
    assert message.usage.output_tokens == scan.usage["output"]
    assert from_anthropic(message.usage.model_dump()) == scan.usage


@anthropic_sdk
@pytest.mark.parametrize("cut_at", [0, 9, 30, 60, 110, -1])
def test_messages_error_after_half_an_event(cut_at):
    """Wherever the upstream broke off, the SDK raises the error and no parse failure."""
    delta = streams.text_delta("never whole")
    half = delta[:cut_at] if cut_at >= 0 else delta.removesuffix(b"\n")
    scan = scan_of("anthropic", MESSAGES)
    body = scan.feed(streams.message_start() + half)
    body += scan.render_error(Code.UPSTREAM_TRUNCATED, "it broke off")
    with (
        pytest.raises(anthropic.APIStatusError, match="it broke off"),
        ask_messages(claude(body)) as stream,
    ):
        stream.get_final_message()


@anthropic_sdk
@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (Code.INVALID_API_KEY, 401, anthropic.AuthenticationError),
        (Code.MODEL_NOT_FOUND, 404, anthropic.NotFoundError),
        (Code.RATE_LIMIT_EXCEEDED, 429, anthropic.RateLimitError),
        (Code.UPSTREAM_ERROR, 502, anthropic.InternalServerError),
    ],
)
def test_messages_refusals(code, status, error):
    body = DIALECTS["anthropic"].render_error(code, "why", request_id="r-1")
    with pytest.raises(error, match="why"):
        claude(body, status).messages.create(model="m", max_tokens=9, messages=SAY)


@anthropic_sdk
def test_a_whole_message():
    usage = streams.START_USAGE | {"output_tokens": 9}
    body = streams.compact(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [{"type": "text", "text": SAID}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
    )
    facts = DIALECTS["anthropic"].parse_response(body)
    message = anthropic.types.Message.model_validate_json(body)
    assert from_anthropic(message.usage.model_dump()) == facts.usage
    assert message.stop_reason == facts.finish_reason


@openai_sdk
def test_chat_without_the_extra_chunk_and_with_pings():
    scan = scan_of("chat", CHAT)
    body = relayed_with_pings(scan, streams.chat_stream(TEXTS))
    chunks = list(gpt(body).chat.completions.create(model="m", messages=SAY, stream=True))
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert all(chunk.usage is None for chunk in chunks)
    told = openai.types.CompletionUsage.model_validate(streams.CHAT_USAGE)
    assert from_chat(told.model_dump()) == scan.usage


@openai_sdk
def test_chat_error_in_the_stream():
    scan = scan_of("chat", CHAT)
    body = scan.feed(streams.chat_chunk({"content": "Hel"}))
    body += scan.render_error(Code.UPSTREAM_TRUNCATED, "it broke off")
    with pytest.raises(openai.APIError, match="it broke off") as caught:
        list(gpt(body).chat.completions.create(model="m", messages=SAY, stream=True))
    assert (caught.value.code, caught.value.type) == ("upstream_truncated", "api_error")


@openai_sdk
def test_responses_with_pings():
    scan = scan_of("responses", RESPONSES)
    body = relayed_with_pings(scan, streams.responses_stream(TEXTS))
    assert body.count(b"event: response.in_progress") > len(TEXTS)
    with gpt(body).responses.stream(model="m", input="x") as stream:
        answer = stream.get_final_response()
    assert answer.output_text == SAID
    assert from_responses(answer.usage.model_dump()) == scan.usage


@openai_sdk
def test_responses_error_in_the_stream():
    scan = scan_of("responses", RESPONSES)
    body = scan.feed(streams.named("response.created", response=streams.response()))
    body += scan.render_error(Code.TIMEOUT, "too slow")
    *_, last = gpt(body).responses.create(model="m", input="x", stream=True)
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.message == "too slow"


@openai_sdk
@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (Code.INVALID_PARAM, 400, openai.BadRequestError),
        (Code.INVALID_API_KEY, 401, openai.AuthenticationError),
        (Code.RATE_LIMIT_EXCEEDED, 429, openai.RateLimitError),
        (Code.UPSTREAM_ERROR, 502, openai.InternalServerError),
    ],
)
def test_openai_refusals(code, status, error):
    for name in ("chat", "responses"):
        body = DIALECTS[name].render_error(code, "why", request_id="r", param="input")
        with pytest.raises(error, match="why") as caught:
            gpt(body, status).responses.create(model="m", input="x")
        assert caught.value.code == code.value
        assert caught.value.param == "input"


BILLED = {"input": 900, "cache_read": 100, "output": 7}


def cut(name, body, stream):
    """The first half of a stream and the frames that end it for want of money."""
    scan = scan_of(name, body)
    got = b"".join(scan.feed(event) for event in events(stream)[:-4])
    assert not scan.finished
    return got + scan.render_cut(BILLED)


@anthropic_sdk
def test_messages_cut_by_the_budget_end_like_max_tokens():
    body = cut("anthropic", MESSAGES, streams.anthropic_stream(TEXTS))
    assert body.count(b"event: content_block_stop") == 1
    with ask_messages(claude(body)) as stream:
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 7)
    assert SAID.startswith(message.content[0].text)
    assert message.content[0].text


@anthropic_sdk
@pytest.mark.parametrize("last", ["stop", "half"])
def test_messages_cut_behind_a_block_or_inside_an_event(last):
    stream = streams.message_start() + streams.block_start({"type": "text", "text": ""}, 3)
    stream += streams.text_delta("said", 3)
    stream += streams.block_stop(3) if last == "stop" else streams.text_delta("never", 3)[:40]
    scan = scan_of("anthropic", MESSAGES)
    body = scan.feed(stream) + scan.render_cut(BILLED)
    assert body.count(b"event: content_block_stop") == 1
    assert b'"index":3}' in body.rpartition(b"content_block_stop")[2]


@openai_sdk
@pytest.mark.parametrize("usage_asked", [True, False])
def test_chat_cut_by_the_budget_ends_like_length(usage_asked):
    body = CHAT.replace(b"[{}]", b'[{}],"stream_options":{"include_usage":true}')
    body = cut("chat", body if usage_asked else CHAT, streams.chat_stream(TEXTS))
    chunks = list(gpt(body).chat.completions.create(model="m", messages=SAY, stream=True))
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert {chunk.id for chunk in chunks} == {"chatcmpl-1"}
    told = [chunk.usage.model_dump() for chunk in chunks if chunk.usage]
    assert [from_chat(usage) for usage in told] == ([BILLED] if usage_asked else [])
    assert body.endswith(b"data: [DONE]\n\n")


@openai_sdk
def test_responses_cut_by_the_budget_are_incomplete():
    body = cut("responses", RESPONSES, streams.responses_stream(TEXTS))
    got = list(gpt(body).responses.create(model="m", input="x", stream=True))
    last = got[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert from_responses(last.response.usage.model_dump()) == BILLED
    assert last.sequence_number == got[-2].sequence_number + 1
