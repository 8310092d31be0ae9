"""What all streams share: any split of the bytes gives the same scan and the same relayed bytes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import Code
from services.core.dialects import DIALECTS
from services.core.framing import events, payload
from tests.parts import streams
from tests.parts.streams import cuts

TEXTS = st.lists(
    st.text(min_size=1, max_size=12)
    | st.sampled_from(
        ['say "usage"', '"message_stop"', "data: [DONE]\n\n", "}]}\n\n", "\\", "\r\n\r\n", "é😀"]
    ),
    min_size=1,
    max_size=8,
)
BODIES = {
    "anthropic": b'{"model":"m","max_tokens":9,"stream":true,"messages":[{}]}',
    "chat": b'{"model":"m","stream":true,"messages":[{}]}',
    "chat-usage": (
        b'{"model":"m","stream":true,"messages":[{}],"stream_options":{"include_usage":true}}'
    ),
    "responses": b'{"model":"m","stream":true,"input":"x"}',
}
MAKE = {
    "anthropic": streams.anthropic_stream,
    "chat": streams.chat_stream,
    "chat-usage": streams.chat_stream,
    "responses": streams.responses_stream,
}
MARKERS = {
    "anthropic": b"event: message_stop",
    "chat": b"data: [DONE]",
    "chat-usage": b"data: [DONE]",
    "responses": b"event: response.completed",
}
unhurried = settings(deadline=None, max_examples=60)
each = pytest.mark.parametrize("name", BODIES)


def new_scan(name):
    dialect = DIALECTS[name.removesuffix("-usage")]
    return dialect.scan(dialect.parse_request(BODIES[name], {}))


def result(scan):
    return (
        scan.usage,
        scan.output_told,
        scan.finished,
        scan.complete_at_eof,
        scan.finish_reason,
        scan.has_content,
        scan.output_bytes,
        scan.error,
        scan.model,
    )


def with_line_ends(stream, end):
    return stream.replace(b"\n", end)


@each
@unhurried
@given(
    texts=TEXTS,
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    keep=st.floats(0, 1),
    data=st.data(),
)
def test_any_split_gives_the_same(name, texts, end, keep, data):
    stream = with_line_ends(MAKE[name](texts), end)
    if data.draw(st.booleans()):
        stream = stream[: int(len(stream) * keep)]
    removing = name == "chat"
    once = new_scan(name)
    out_once = once.feed(stream) + once.close()

    split = new_scan(name)
    out = b""
    for piece in data.draw(cuts(stream)):
        relayed = split.feed(piece)
        assert removing or relayed is piece
        out += relayed
    out += split.close()

    assert result(split) == result(once)
    extra = with_line_ends(streams.usage_chunk(), end)
    assert out == out_once == (stream.replace(extra, b"") if removing else stream)


@each
@unhurried
@given(texts=TEXTS, data=st.data())
def test_the_whole_stream_is_understood(name, texts, data):
    scan = new_scan(name)
    for piece in data.draw(cuts(MAKE[name](texts))):
        assert not scan.finished
        scan.feed(piece)
    assert scan.finished
    assert scan.has_content
    assert scan.output_told
    assert scan.error is None
    assert scan.at_boundary
    assert scan.model.startswith(("claude-", "gpt-"))
    assert scan.usage["output"] == 40
    assert scan.output_bytes == sum(len(streams.compact(text)) - 2 for text in texts)


@each
@unhurried
@given(texts=TEXTS, data=st.data())
def test_finished_comes_with_the_marker_and_not_before(name, texts, data):
    stream = MAKE[name](texts)
    scan = new_scan(name)
    for piece in data.draw(cuts(stream)):
        relayed = scan.feed(piece)
    assert scan.finished
    assert relayed  # the caller has something to hold back
    unfinished = new_scan(name)
    unfinished.feed(stream[: stream.rindex(MARKERS[name])])
    assert not unfinished.finished


@each
@unhurried
@given(texts=TEXTS, data=st.data())
def test_pings_at_boundaries_change_nothing(name, texts, data):
    scan, again = new_scan(name), new_scan(name)
    out = b""
    for piece in data.draw(cuts(MAKE[name](texts))):
        out += scan.feed(piece)
        ping = scan.ping()
        assert not (ping and not scan.at_boundary)
        out += ping if not scan.finished else b""
    for event in events(out):
        data_text = payload(event)
        assert data_text in (b"", b"[DONE]") or isinstance(json.loads(data_text), dict)
    again.feed(out)
    if name == "chat":
        assert again.finish_reason == "stop"
    else:
        assert result(again)[:6] == result(scan)[:6]


@each
@unhurried
@given(texts=TEXTS, keep=st.floats(0, 1))
def test_an_error_can_end_a_stream_anywhere(name, texts, keep):
    stream = MAKE[name](texts)
    stream = stream[: int(stream.rindex(MARKERS[name]) * keep)]
    scan = new_scan(name)
    out = scan.feed(stream) + scan.close()
    out += scan.render_error(Code.UPSTREAM_TRUNCATED, "it broke off")
    client = new_scan("chat-usage" if name == "chat" else name)
    client.feed(out)
    assert client.error is not None
    assert client.error[1] == "it broke off"
    assert client.at_boundary
    assert client.finished == name.startswith("chat")
    if not name.startswith("chat"):
        assert client.render_error(Code.UPSTREAM_STREAM_ERROR, "again") == b""


@each
def test_an_event_over_the_cap_flows_and_is_not_read(name):
    size = 65 << 20 if name == "responses" else 2 << 20
    giant = streams.unnamed({"type": "error", "error": {"message": "x" * size}})
    stream = MAKE[name](["Hello"])
    at = stream.index(b"\n\n") + 2
    stream = stream[:at] + giant + stream[at:]
    scan = new_scan(name)
    out = b"".join(
        scan.feed(stream[place : place + 65_536]) for place in range(0, len(stream), 65_536)
    )
    assert out == (stream.replace(streams.usage_chunk(), b"") if name == "chat" else stream)
    assert scan.error is None
    assert scan.finished
    assert scan.usage["output"] == 40


@each
def test_comments_and_unknown_events_pass(name):
    stream = MAKE[name](["Hello"])
    odd = b': keep-alive\n\nevent: brand_new\ndata: {"type":"brand_new"}\n\ndata: 7\n\ndata\n\n'
    scan = new_scan(name)
    out = scan.feed(odd + stream[:-1]) + scan.feed(stream[-1:]) + scan.feed(b": after\n\n")
    assert scan.finished
    assert scan.error is None
    assert odd in out
    assert out.endswith(b": after\n\n")


TYPES = st.sampled_from(
    [
        "message",
        "message_start",
        "message_delta",
        "content_block_start",
        "content_block_delta",
        "error",
        "response.created",
        "response.completed",
        "response.failed",
        "response.output_item.done",
        "response.output_text.delta",
    ]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "completed"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("type"), inner),
    max_leaves=4,
)


JSON = ANY.filter(lambda value: not any(word in repr(value) for word in ("inf", "nan")))


def of(names, values=ANY):
    """Objects that have some of the names, each with a value of any kind."""
    return values | st.fixed_dictionaries({}, optional=dict.fromkeys(names.split(), values))


COUNTS = of("input_tokens output_tokens prompt_tokens completion_tokens cache_creation")
PARTS = st.lists(of("type text thinking input refusal arguments function tool_calls"), max_size=2)
CHOICE = of("finish_reason") | st.fixed_dictionaries({"delta": PARTS, "message": of("content")})
RESPONSE = of("status error model incomplete_details") | st.fixed_dictionaries(
    {"usage": COUNTS, "output": PARTS, "status": ANY}
)
ODD_EVENTS = st.fixed_dictionaries(
    {"type": TYPES | ANY},
    optional={
        "message": of("model usage", COUNTS),
        "usage": COUNTS,
        "delta": of("type text stop_reason") | ANY,
        "content_block": of("type text thinking"),
        "content": PARTS | ANY,
        "stop_reason": ANY,
        "choices": st.lists(CHOICE, max_size=2) | ANY,
        "error": of("type code message"),
        "response": RESPONSE,
        "item": of("type content summary action"),
        "status": ANY,
        "output": PARTS | ANY,
    },
)


@each
@settings(deadline=None)
@given(values=st.lists(ODD_EVENTS | ANY, max_size=5), rest=st.binary(max_size=20))
def test_no_answer_makes_a_scan_or_a_reading_fail(name, values, rest):
    stream = b"".join(streams.unnamed(value) for value in values) + rest
    scan = new_scan(name)
    relayed = scan.feed(stream) + scan.close()
    assert len(relayed) <= len(stream)
    result(scan)
    scan.ping()
    assert scan.render_error(Code.TIMEOUT, "x").endswith(b"\n\n") or scan.error
    for value in values:
        facts = DIALECTS[name.removesuffix("-usage")].parse_response(streams.compact(value))
        assert facts.error or facts.usage is None or all(n > 0 for n in facts.usage.values())


@each
@settings(deadline=None)
@given(
    parts=st.lists(of("type source file image_url input_audio content", JSON) | JSON, max_size=3)
)
def test_no_request_makes_the_counting_of_media_fail(name, parts):
    marker = {"type": "image", "kinds": ["document", "image_url", "file", "input_file"]}
    content = streams.compact([{"role": "user", "content": [*parts, marker]}])
    body = BODIES[name].replace(b"[{}]", content).replace(b'"input":"x"', b'"input":' + content)
    dialect = DIALECTS[name.removesuffix("-usage")]
    shape = dialect.parse_request(body, {}).shape
    assert 0 <= shape.text_bytes <= len(body)
