"""The OpenAI Chat Completions dialect: `POST /v1/chat/completions`."""

from collections.abc import Mapping
from typing import Final

import msgspec

from services.core import usage as classes
from services.core.dialects import openai
from services.core.dialects.base import ParsedRequest, ResponseFacts, with_model
from services.core.dialects.chat_stream import ChatScan, message_bytes, message_says_something
from services.core.dialects.reading import (
    ModelName,
    Positive,
    child,
    children,
    error_in,
    json_object,
    label,
    models_of,
    need_items,
    need_one_model,
    read_request,
    request_decoder,
    text_of,
)
from services.core.dialects.shape import body_shape
from services.core.json_span import append_member, find_value
from services.core.tiers import told_tier

_MEDIA: Final = (b'"image_url"', b'"file"', b'"input_audio"')
_NULL: Final = msgspec.Raw(b"null")
_USAGE_WANTED: Final = b'{"include_usage":true}'


class _Body(msgspec.Struct):
    model: ModelName
    messages: msgspec.Raw
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Positive | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw = _NULL
    prompt_cache_key: msgspec.Raw = _NULL
    prompt_cache_options: msgspec.Raw = _NULL
    prompt_cache_retention: msgspec.Raw = _NULL
    user: msgspec.Raw = _NULL
    web_search_options: msgspec.Raw = _NULL
    service_tier: object = None
    models: object = None  # OpenRouter's, tried when the one asked for fails


_decoder: Final = request_decoder(_Body)


class Chat(openai.OpenAI):
    name: str = "chat"
    path: str = "/v1/chat/completions"
    upstream_path: str = "/v1/chat/completions"

    def parse_request(self, body: bytes, headers: Mapping[str, str]) -> ParsedRequest:
        read = read_request(_decoder, body)
        messages = need_items(read.messages, "messages")
        need_one_model("models", read.model, models_of(read.models))
        shape = body_shape(
            body,
            messages,
            _MEDIA,
            cache_write_1h=openai.keeps_cache_long(
                read.prompt_cache_options, read.prompt_cache_retention
            ),
            server_tools=not _is_null(read.web_search_options),
        )
        # Vendors differ in which of the two caps they obey: the larger one bounds both.
        caps = [cap for cap in (read.max_completion_tokens, read.max_tokens) if cap is not None]
        stream = bool(read.stream)
        return ParsedRequest(
            model=read.model,
            stream=stream,
            max_output_tokens=max(caps) if caps else None,
            n=read.n or 1,
            shape=shape,
            session_id=label(_text(read.prompt_cache_key), _text(read.user)),
            agent_id=label(headers.get("x-claude-code-agent-id")),
            wants_usage=not stream
            or json_object(bytes(read.stream_options)).get("include_usage") is True,
            tier=told_tier(read.service_tier) or "",
        )

    def upstream_body(self, body: bytes, parsed: ParsedRequest, upstream_model: str) -> bytes:
        body = with_model(body, parsed, upstream_model)
        return body if parsed.wants_usage else _asking_for_usage(body)

    def parse_response(self, body: bytes) -> ResponseFacts:
        answer = json_object(body)
        error = error_in(answer.get("error"))
        if error or type(answer.get("choices")) is not list:
            return ResponseFacts(error=error or ("api_error", "the answer has no choices"))
        told = answer.get("usage")
        choices = children(answer, "choices")
        messages = [child(choice, "message") for choice in choices]
        reasons = [text_of(choice, "finish_reason") for choice in choices]
        return ResponseFacts(
            usage=classes.from_chat(told) if type(told) is dict else None,
            finished=bool(reasons) and all(reasons),
            finish_reason=next((reason for reason in reasons if reason), ""),
            has_content=any(message_says_something(message) for message in messages),
            output_bytes=sum(message_bytes(message) for message in messages),
            model=text_of(answer, "model"),
            tier=told_tier(answer.get("service_tier")),
        )

    def scan(self, parsed: ParsedRequest) -> ChatScan:
        return ChatScan(remove_usage=not parsed.wants_usage, choices=parsed.n)


def _asking_for_usage(body: bytes) -> bytes:
    """`body` with `stream_options.include_usage`; the client's other stream options stay."""
    if b'"stream_options"' in body:
        span = find_value(body, "stream_options")
        if span is not None:
            options = json_object(body[span[0] : span[1]]) | {"include_usage": True}
            return body[: span[0]] + msgspec.json.encode(options) + body[span[1] :]
    return append_member(body, "stream_options", _USAGE_WANTED)


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw).strip() == b"null"


def _text(raw: msgspec.Raw) -> object:
    return msgspec.json.decode(raw)
