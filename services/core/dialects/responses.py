"""The OpenAI Responses dialect: `POST /v1/responses`."""

from collections.abc import Mapping
from typing import Final

import msgspec

from schemas.errors import Code
from services.core import usage as classes
from services.core.dialects import openai
from services.core.dialects.base import ParsedRequest, ResponseFacts, with_model
from services.core.dialects.reading import (
    ModelName,
    Positive,
    children,
    error_in,
    first_header,
    json_object,
    label,
    need_text_or_array,
    read_request,
    request_decoder,
    text_of,
)
from services.core.dialects.responses_stream import (
    ResponsesScan,
    end_reason,
    item_bytes,
    item_says_something,
    searches_in,
)
from services.core.dialects.shape import body_shape
from services.core.errors import InvalidRequest
from services.core.tiers import told_tier

_MEDIA: Final = (
    b'"input_image"',
    b'"input_file"',
    b'"input_audio"',
    b'"image_generation_call"',
)
_NULL: Final = msgspec.Raw(b"null")
_CLIENT_TOOLS: Final = frozenset(
    {
        "function",
        "custom",
        "namespace",
        "local_shell",
        "shell",
        "apply_patch",
        "computer",
        "computer_use_preview",
        "tool_search",
    }
)


class _Tool(msgspec.Struct):
    type: str = "function"


class _Item(msgspec.Struct):
    type: str | None = None
    tools: list[_Tool] | None = None


class _Body(msgspec.Struct):
    model: ModelName
    input: msgspec.Raw = msgspec.Raw(b"")
    max_output_tokens: Positive | None = None
    stream: bool | None = None
    background: bool | None = None
    tools: list[_Tool] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: msgspec.Raw = _NULL
    prompt_cache_retention: msgspec.Raw = _NULL
    service_tier: object = None
    previous_response_id: msgspec.Raw = _NULL
    conversation: msgspec.Raw = _NULL
    prompt: msgspec.Raw = _NULL


_decoder: Final = request_decoder(_Body)
_items_decoder: Final = msgspec.json.Decoder(list[_Item])


class Responses(openai.OpenAI):
    name: str = "responses"
    path: str = "/v1/responses"
    upstream_path: str = "/v1/responses"

    def parse_request(self, body: bytes, headers: Mapping[str, str]) -> ParsedRequest:
        read = read_request(_decoder, body)
        stored = any(
            bytes(each).strip() != b"null"
            for each in (read.previous_response_id, read.conversation, read.prompt)
        )
        content = b""
        if not stored or bytes(read.input).strip() not in (b"", b"null"):
            content = need_text_or_array(read.input, "input")
        if read.background:
            # Its answer would be made after this request was already judged and closed.
            raise InvalidRequest(
                "background: is not supported", param="background", code=Code.UNSUPPORTED_FEATURE
            )
        tools = (read.tools or []) + _added_tools(content)
        if any(tool.type == "image_generation" for tool in tools):
            # The vendor charges pictures beside the usage, at prices of other models.
            raise InvalidRequest(
                "tools: image_generation has no price here; use POST /v1/images/generations",
                param="tools",
                code=Code.UNSUPPORTED_FEATURE,
            )
        shape = body_shape(
            body,
            content,
            _MEDIA,
            cache_write_1h=openai.keeps_cache_long(
                read.prompt_cache_options, read.prompt_cache_retention
            ),
            server_tools=any(tool.type not in _CLIENT_TOOLS for tool in tools),
            stored_input=stored or content.rfind(b'"item_reference"') >= 0,
        )
        return ParsedRequest(
            model=read.model,
            stream=bool(read.stream),
            max_output_tokens=read.max_output_tokens,
            shape=shape,
            session_id=label(read.prompt_cache_key)
            or first_header(headers, "session-id", "session_id"),
            agent_id=first_header(headers, "x-claude-code-agent-id"),
            tier=told_tier(read.service_tier) or "",
        )

    def upstream_body(self, body: bytes, parsed: ParsedRequest, upstream_model: str) -> bytes:
        return with_model(body, parsed, upstream_model)

    def parse_response(self, body: bytes) -> ResponseFacts:
        answer = json_object(body)
        reason = end_reason(answer)
        if not reason:
            error = error_in(answer.get("error"))
            return ResponseFacts(error=error or ("api_error", "the answer is not finished"))
        told = answer.get("usage")
        items = children(answer, "output")
        usage = classes.from_responses(told) if type(told) is dict else None
        searches = searches_in(answer, items)
        if usage is not None and searches:
            usage["web_search"] = searches
        return ResponseFacts(
            usage=usage,
            finished=True,
            finish_reason=reason,
            has_content=any(item_says_something(item) for item in items),
            output_bytes=sum(item_bytes(item) for item in items),
            model=text_of(answer, "model"),
            tier=told_tier(answer.get("service_tier")),
        )

    def scan(self, parsed: ParsedRequest) -> ResponsesScan:
        return ResponsesScan(count_searches=parsed.shape.server_tools)


def _added_tools(content: bytes) -> list[_Tool]:
    """Codex's newest models carry their tools in an input item instead of `tools`."""
    if b'"additional_tools"' not in content:
        return []
    try:
        items = _items_decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [_Tool("unreadable")]  # hold the most
    return [tool for item in items if item.type == "additional_tools" for tool in item.tools or ()]
