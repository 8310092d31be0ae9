"""Request bodies of each dialect: what is read, what is refused and where, what is edited."""

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import Code
from services.core.dialects import DIALECTS
from services.core.dialects.base import BodyShape
from services.core.errors import InvalidRequest
from tests.parts.streams import compact

A, C, R = DIALECTS["anthropic"], DIALECTS["chat"], DIALECTS["responses"]
SAY = [{"role": "user", "content": "hi"}]
MINIMAL = {
    "anthropic": {"model": "claude-x", "max_tokens": 100, "messages": SAY},
    "chat": {"model": "gpt-5", "messages": SAY},
    "responses": {"model": "gpt-5", "input": "hi"},
}
each = pytest.mark.parametrize("name", DIALECTS)
PICTURE = base64.b64encode(bytes(range(256)) * 40).decode()


def parse(name, headers=None, **fields):
    body = compact({k: v for k, v in (MINIMAL[name] | fields).items() if v is not ...})
    return DIALECTS[name].parse_request(body, headers or {})


def refusal(name, body) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        DIALECTS[name].parse_request(body if isinstance(body, bytes) else compact(body), {})
    assert caught.value.status == 400
    return caught.value


@each
def test_the_table_of_dialects(name):
    dialect = DIALECTS[name]
    assert dialect.name == name
    assert dialect.path == dialect.upstream_path
    assert dialect.path.startswith("/v1/")


@each
def test_minimal_bodies(name):
    parsed = parse(name)
    body = compact(MINIMAL[name])
    assert parsed.model == MINIMAL[name]["model"]
    assert not parsed.stream
    assert parsed.n == 1
    assert parsed.wants_usage
    assert parsed.max_output_tokens == (100 if name == "anthropic" else None)
    assert parsed.shape == BodyShape(text_bytes=len(body))
    assert parsed.session_id == parsed.agent_id == ""


@pytest.mark.parametrize(
    ("name", "fields", "param", "says"),
    [
        (name, fields, param, says)
        for name, common in MINIMAL.items()
        for fields, param, says in [
            ({"model": ...}, "model", "field required"),
            ({"model": 7}, "model", "expected str, got int"),
            ({"model": ""}, "model", "length >= 1"),
            ({"model": "m" * 257}, "model", "length <= 256"),
            ({"model": None}, "model", "got null"),
            ({"stream": "yes"}, "stream", "expected bool"),
            ({"stream": 1}, "stream", "expected bool"),
        ]
    ]
    + [
        ("anthropic", {"messages": ...}, "messages", "field required"),
        ("anthropic", {"messages": "hi"}, "messages", "expected array, got str"),
        ("anthropic", {"messages": []}, "messages", "at least one item"),
        ("anthropic", {"max_tokens": ...}, "max_tokens", "field required"),
        ("anthropic", {"max_tokens": -5}, "max_tokens", ">= 0"),
        ("anthropic", {"max_tokens": "100"}, "max_tokens", "expected int, got str"),
        ("anthropic", {"max_tokens": 1.5}, "max_tokens", "expected int, got float"),
        ("anthropic", {"max_tokens": True}, "max_tokens", "expected int, got bool"),
        ("anthropic", {"max_tokens": 10**30}, "max_tokens", "<="),
        ("anthropic", {"stream": None}, "stream", "expected bool"),
        ("anthropic", {"tools": [{}, {"type": 5}]}, "tools[1].type", "expected str"),
        ("anthropic", {"tools": {}}, "tools", "expected array"),
        ("chat", {"messages": ...}, "messages", "field required"),
        ("chat", {"messages": {"role": "user"}}, "messages", "expected array, got object"),
        ("chat", {"messages": []}, "messages", "at least one item"),
        ("chat", {"max_completion_tokens": 0}, "max_completion_tokens", ">= 1"),
        ("chat", {"max_tokens": "9"}, "max_tokens", "got str"),
        ("chat", {"n": 0}, "n", ">= 1"),
        ("responses", {"input": ...}, "input", "field required"),
        ("responses", {"input": 7}, "input", "expected array, got number"),
        ("responses", {"input": None}, "input", "got null"),
        ("responses", {"input": ""}, "input", "length >= 1"),
        ("responses", {"input": []}, "input", "at least one item"),
        ("responses", {"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ("responses", {"prompt_cache_key": 5}, "prompt_cache_key", "expected str"),
    ],
)
def test_wrong_fields_are_named(name, fields, param, says):
    body = {k: v for k, v in (MINIMAL[name] | fields).items() if v is not ...}
    refused = refusal(name, body)
    assert refused.param == param
    assert refused.message.startswith(f"{param}: ")
    assert says in refused.message
    assert refused.code == Code.INVALID_PARAM


@each
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model" 1}', "at byte 9"),
        (b'{"x": nan}', "at byte 7"),
        (b'{"model":"m","messages":[1],"input":"x","max_tokens":1} x', "trailing characters"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model":"\xff"}', "not valid"),
        (b'{"x":' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_bodies_that_are_no_request(name, body, says):
    refused = refusal(name, body)
    assert says in refused.message
    assert refused.param is None


@each
@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_raise_anything_else(name, body):
    with suppress(InvalidRequest):
        DIALECTS[name].parse_request(body, {})


@each
def test_half_a_surrogate_pair_is_the_upstreams_to_refuse(name):
    """JavaScript writes one where a text was cut inside an emoji."""
    body = compact(MINIMAL[name]).replace(b"hi", rb"cut \ud83d here \\ud83d \ud83d\ude00")
    dialect = DIALECTS[name]
    parsed = dialect.parse_request(body, {})
    assert parsed.shape.text_bytes == len(body)
    assert dialect.upstream_body(body, parsed, parsed.model) is body
    sent = dialect.upstream_body(body, parsed, "other")
    assert sent == body.replace(compact(parsed.model), b'"other"', 1)


def test_nulls_that_openai_allows():
    parsed = parse("chat", stream=None, n=None, max_tokens=None, stream_options=None, user=None)
    assert (parsed.stream, parsed.n, parsed.max_output_tokens) == (False, 1, None)
    parsed = parse("responses", stream=None, tools=None, prompt_cache_key=None, background=False)
    assert (parsed.stream, parsed.session_id) == (False, "")


def test_a_background_response_is_no_answer_to_wait_for():
    refused = refusal("responses", MINIMAL["responses"] | {"background": True})
    assert (refused.code, refused.param) == (Code.UNSUPPORTED_FEATURE, "background")


# -- caps, sessions, agents


def test_a_request_that_only_fills_the_prompt_cache():
    assert parse("anthropic", max_tokens=0).max_output_tokens == 0


def test_the_larger_chat_cap_bounds_both():
    assert parse("chat", max_tokens=10, max_completion_tokens=50).max_output_tokens == 50
    assert parse("chat", max_tokens=10).max_output_tokens == 10
    assert parse("chat", n=3).n == 3


def test_anthropic_session_and_agent():
    user = json.dumps({"device_id": "d", "account_uuid": "", "session_id": "from-metadata"})
    headers = {"x-claude-code-session-id": "from-header", "x-claude-code-agent-id": "agent-7"}
    parsed = parse("anthropic", headers, metadata={"user_id": user})
    assert (parsed.session_id, parsed.agent_id) == ("from-header", "agent-7")
    assert parse("anthropic", metadata={"user_id": user}).session_id == "from-metadata"
    for odd in ({"user_id": "plain"}, {"user_id": "{bad"}, {"user_id": "{}"}, {}, None, "x", [1]):
        assert parse("anthropic", metadata=odd).session_id == ""


def test_openai_sessions():
    assert parse("chat", prompt_cache_key="k", user="u").session_id == "k"
    assert parse("chat", user="u").session_id == "u"
    assert parse("chat", user={"odd": 1}).session_id == ""
    headers = {"session-id": "from-header"}
    assert parse("responses", headers, prompt_cache_key="k").session_id == "k"
    assert parse("responses", headers).session_id == "from-header"
    assert parse("responses", {"session_id": "older"}).session_id == "older"


def test_labels_are_bounded():
    assert len(parse("anthropic", {"x-claude-code-session-id": "s" * 5000}).session_id) == 256
    assert len(parse("responses", prompt_cache_key="s" * 5000).session_id) == 256


# -- shape


def block(kind, source):
    return {"type": kind, "source": source}


BASE64 = {"type": "base64", "media_type": "image/png", "data": PICTURE}


@pytest.mark.parametrize(
    ("name", "part", "images", "documents", "encoded"),
    [
        ("anthropic", block("image", BASE64), 1, 0, len(PICTURE)),
        ("anthropic", block("image", {"type": "url", "url": "https://x/y.png"}), 1, 0, 0),
        ("anthropic", block("image", {"type": "file", "file_id": "f"}), 1, 0, 0),
        ("anthropic", block("document", BASE64), 0, 1, len(PICTURE)),
        ("anthropic", block("document", {"type": "text", "data": "plain text"}), 0, 1, 0),
        (
            "anthropic",
            {"type": "tool_result", "content": [block("image", BASE64), block("image", BASE64)]},
            2,
            0,
            2 * len(PICTURE),
        ),
        (
            "chat",
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}},
            1,
            0,
            len(PICTURE) + 22,
        ),
        (
            "anthropic",
            block("document", {"type": "content", "content": [block("image", BASE64)]}),
            1,
            1,
            len(PICTURE),
        ),
        ("chat", {"type": "image_url", "image_url": {"url": "https://x/y.png"}}, 1, 0, 0),
        ("chat", {"type": "file", "file": {"file_data": PICTURE}}, 0, 1, len(PICTURE)),
        ("chat", {"type": "input_audio", "input_audio": {"data": PICTURE}}, 0, 1, len(PICTURE)),
        ("chat", {"type": "text", "text": 'say "image_url" and \\"file\\"'}, 0, 0, 0),
        (
            "responses",
            {"type": "input_image", "image_url": "data:image/png;base64," + PICTURE},
            1,
            0,
            len(PICTURE) + 22,
        ),
        ("responses", {"type": "input_image", "image_url": "https://x/y.png"}, 1, 0, 0),
        ("responses", {"type": "input_image", "file_id": "file_1"}, 1, 0, 0),
        ("responses", {"type": "input_file", "file_data": PICTURE}, 0, 1, len(PICTURE)),
        ("responses", {"type": "image_generation_call", "result": PICTURE}, 1, 0, len(PICTURE)),
    ],
)
def test_media_is_counted_and_its_base64_is_no_text(name, part, images, documents, encoded):
    fields = {"input" if name == "responses" else "messages": [{"role": "user", "content": [part]}]}
    shape = parse(name, **fields).shape
    size = len(compact(MINIMAL[name] | fields))
    assert (shape.images, shape.documents) == (images, documents)
    assert shape.text_bytes == size - encoded


def test_media_words_in_tools_are_not_looked_at():
    tool = {"name": "draw", "input_schema": {"properties": {"kind": {"enum": ["image"]}}}}
    assert parse("anthropic", tools=[tool]).shape.images == 0


@pytest.mark.parametrize("text", ['{"type":"ephemeral","ttl":"1h"}', '{"ttl" :\n "1h"}'])
def test_an_hour_of_cache(text):
    body = compact(MINIMAL["anthropic"])[:-1] + b',"cache_control":' + text.encode() + b"}"
    assert A.parse_request(body, {}).shape.cache_write_1h
    assert not parse("anthropic", cache_control={"type": "ephemeral"}).shape.cache_write_1h


def test_long_openai_caches():
    for name in ("chat", "responses"):
        assert parse(name, prompt_cache_retention="24h").shape.cache_write_1h
        assert parse(name, prompt_cache_options={"ttl": "12h"}).shape.cache_write_1h
        assert not parse(name, prompt_cache_options={"ttl": "30m"}).shape.cache_write_1h


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("web_search_20250305", True),
        ("web_fetch_20260318", True),
        ("code_execution_20260521", True),
        ("some_future_tool_20270101", True),
        ("bash_20250124", False),
        ("text_editor_20250728", False),
        ("computer_20251124", False),
        ("memory_20250818", False),
        ("custom", False),
        (None, False),
    ],
)
def test_anthropic_tools_that_run_on_the_server(kind, expected):
    assert parse("anthropic", tools=[{"name": "x", "type": kind}]).shape.server_tools is expected


def test_other_server_work():
    assert parse("anthropic", mcp_servers=[{"url": "https://x"}]).shape.server_tools
    assert not parse("anthropic", mcp_servers=[], tools=None).shape.server_tools
    assert parse("chat", web_search_options={}).shape.server_tools
    for kind in ("web_search", "file_search", "code_interpreter", "mcp"):
        assert parse("responses", tools=[{"type": kind}]).shape.server_tools
        item = {"type": "additional_tools", "tools": [{"type": "custom"}, {"type": kind}]}
        assert parse("responses", input=[item]).shape.server_tools
    for kind in ("function", "custom", "namespace", "local_shell", "tool_search"):
        assert not parse("responses", tools=[{"type": kind}]).shape.server_tools
        item = {"type": "additional_tools", "tools": [{"type": kind}]}
        assert not parse("responses", input=[item]).shape.server_tools


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt"])
def test_input_that_the_vendor_has_stored(field):
    for said in ("more", None, ...):  # a stored prompt may need no other input
        assert parse("responses", input=said, **{field: "x_1"}).shape.stored_input
    assert not parse("responses", **{field: None}).shape.stored_input
    assert not parse("responses").shape.stored_input


def test_input_that_the_vendor_has_stored_in_other_words():
    reference = [{"type": "item_reference", "id": "msg_1"}]
    assert parse("responses", input=reference).shape.stored_input
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    assert parse("anthropic", thread=thread).shape.stored_input
    for kept in ({"type": "create"}, None):
        assert not parse("anthropic", thread=kept).shape.stored_input


@each
@pytest.mark.parametrize("spelling", ["Model", "MODEL", r"mod\u0045l"])
def test_a_model_in_another_spelling_cannot_be_served_unbilled(name, spelling):
    """Servers that ignore case, as Go's do, would take the last one."""
    body = compact(MINIMAL[name])
    for odd in (b"null", b'""', b'"dearer"'):
        refused = refusal(name, body[:-1] + b',"%b":%b}' % (spelling.encode(), odd))
        assert "the name of this member is `model`" in refused.message
    assert parse(name, model_="x", Models="x").model == MINIMAL[name]["model"]


def test_pictures_beside_an_answer_have_no_price():
    tools = [{"type": "function"}, {"type": "image_generation"}]
    added = [{"type": "additional_tools", "tools": tools}]
    for fields in ({"tools": tools}, {"input": added}):
        refused = refusal("responses", MINIMAL["responses"] | fields)
        assert (refused.code, refused.param) == (Code.UNSUPPORTED_FEATURE, "tools")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("anthropic", "tools", lambda model: [{"type": "advisor_20260301", "model": model}]),
        ("anthropic", "fallbacks", lambda model: [{"model": model}]),
        ("chat", "models", lambda model: [model]),
    ],
)
def test_a_request_is_allowed_and_billed_by_one_model(name, field, value):
    asked = MINIMAL[name]["model"]
    refused = refusal(name, MINIMAL[name] | {field: value("dearer")})
    assert (refused.code, refused.param) == (Code.UNSUPPORTED_FEATURE, field)
    assert parse(name, **{field: value(asked)}).model == asked
    for odd in (None, "default" if field != "tools" else [{"model": 7}]):
        assert parse(name, **{field: odd}).model == asked


# -- what goes upstream


@each
def test_nothing_to_edit_is_the_same_object(name):
    body = compact(MINIMAL[name] | {"stream": name != "chat"})
    dialect = DIALECTS[name]
    parsed = dialect.parse_request(body, {})
    assert dialect.upstream_body(body, parsed, parsed.model) is body


@each
def test_an_alias_changes_only_the_model(name):
    body = json.dumps(MINIMAL[name] | {"z": {"model": "inner"}}, indent=2).encode()
    dialect = DIALECTS[name]
    parsed = dialect.parse_request(body, {})
    sent = dialect.upstream_body(body, parsed, 'up"stream')
    assert sent == body.replace(compact(parsed.model), b'"up\\"stream"', 1)
    assert json.loads(sent)["model"] == 'up"stream'


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (..., {"include_usage": True}),
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ("odd", {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
    ],
)
def test_chat_streams_ask_for_usage(options, sent):
    fields = {"stream": True} | ({} if options is ... else {"stream_options": options})
    body = compact(MINIMAL["chat"] | fields)
    parsed = C.parse_request(body, {})
    assert not parsed.wants_usage
    upstream = C.upstream_body(body, parsed, "other")
    expected = MINIMAL["chat"] | fields | {"stream_options": sent, "model": "other"}
    assert json.loads(upstream) == expected


def test_a_chat_client_that_asks_gets_its_own_bytes():
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    body = compact(MINIMAL["chat"] | fields)
    parsed = C.parse_request(body, {})
    assert parsed.wants_usage
    assert C.upstream_body(body, parsed, parsed.model) is body


def test_headers_for_each_upstream():
    for name in ("anthropic-version", "anthropic-beta", "anthropic-anything-new", "content-type"):
        assert A.is_upstream_header(name)
    for name in (
        "openai-beta",
        "x-codex-turn-metadata",
        "session-id",
        "thread-id",
        "originator",
        "x-client-request-id",
        "idempotency-key",
        "x-openai-internal-codex-responses-lite",
        "content-type",
    ):
        assert C.is_upstream_header(name)
        assert R.is_upstream_header(name)
    for name in (
        "authorization",
        "x-api-key",
        "x-goog-api-key",
        "cookie",
        "host",
        "content-length",
        "connection",
        "transfer-encoding",
        "x-forwarded-for",
        "accept-encoding",
        "user-agent",
        "x-claude-code-session-id",
        "x-stainless-os",
        "openai-organization",
        "x-tollgate-identity",
    ):
        assert not any(dialect.is_upstream_header(name) for dialect in DIALECTS.values())
