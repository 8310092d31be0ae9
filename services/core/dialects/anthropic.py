"""The Anthropic Messages dialect: `POST /v1/messages`."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.errors import SHAPES, Code
from services.core import usage as classes
from services.core.dialects.anthropic_stream import AnthropicScan, tier_in
from services.core.dialects.base import ParsedRequest, ResponseFacts, with_model
from services.core.dialects.reading import (
    ModelName,
    Natural,
    child,
    children,
    error_in,
    first_header,
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

_MEDIA: Final = (b'"image"', b'"document"')
_DATED_TOOL: Final = re.compile(r"(\w+)_20\d{6}")
# Tools that Anthropic names but the client runs: they make no further calls on the server.
_CLIENT_TOOLS: Final = frozenset({"bash", "text_editor", "computer", "computer_toolset", "memory"})
_TYPE_BY_STATUS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_HEADERS: Final = frozenset({"content-type", "accept"})


class _Tool(msgspec.Struct):
    type: str | None = None
    model: object = None  # of an advisor


class _Body(msgspec.Struct):
    model: ModelName
    messages: msgspec.Raw
    max_tokens: Natural  # 0 only fills the prompt cache
    stream: bool = False
    tools: list[_Tool] | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    mcp_servers: msgspec.Raw = msgspec.Raw(b"null")
    fallbacks: object = None
    thread: object = None
    service_tier: object = None
    speed: object = None


class _CountBody(msgspec.Struct):
    model: ModelName
    messages: msgspec.Raw


_decoder: Final = request_decoder(_Body)
_count_decoder: Final = request_decoder(_CountBody)


class Anthropic:
    name: str = "anthropic"
    path: str = "/v1/messages"
    upstream_path: str = "/v1/messages"

    def parse_request(self, body: bytes, headers: Mapping[str, str]) -> ParsedRequest:
        read = read_request(_decoder, body)
        messages = need_items(read.messages, "messages")
        need_one_model("tools", read.model, (tool.model for tool in read.tools or ()))
        need_one_model("fallbacks", read.model, models_of(read.fallbacks))
        shape = body_shape(
            body,
            messages,
            _MEDIA,
            cache_write_1h=body.rfind(b'"1h"') >= 0,  # half the time of `in`
            server_tools=_runs_on_server(read.tools, read.mcp_servers),
            stored_input=_goes_on(read.thread),
        )
        return ParsedRequest(
            model=read.model,
            stream=read.stream,
            max_output_tokens=read.max_tokens,
            shape=shape,
            session_id=first_header(headers, "x-claude-code-session-id")
            or _session_in(read.metadata),
            agent_id=first_header(headers, "x-claude-code-agent-id"),
            tier=tier_in({"speed": read.speed, "service_tier": read.service_tier}) or "",
        )

    def parse_count_request(self, body: bytes) -> ParsedRequest:
        """A `count_tokens` body: as a request, without `max_tokens`. Raises `InvalidRequest`."""
        read = read_request(_count_decoder, body)
        messages = need_items(read.messages, "messages")
        shape = body_shape(body, messages, _MEDIA, cache_write_1h=False, server_tools=False)
        return ParsedRequest(model=read.model, stream=False, max_output_tokens=None, shape=shape)

    def upstream_body(self, body: bytes, parsed: ParsedRequest, upstream_model: str) -> bytes:
        return with_model(body, parsed, upstream_model)

    def parse_response(self, body: bytes) -> ResponseFacts:
        answer = json_object(body)
        if answer.get("error") or answer.get("type") != "message":
            error = error_in(answer.get("error"))
            return ResponseFacts(error=error or ("api_error", "the answer is no message"))
        told = answer.get("usage")
        reason = text_of(answer, "stop_reason")
        content = children(answer, "content")
        return ResponseFacts(
            usage=classes.from_anthropic(told) if type(told) is dict else None,
            finished=bool(reason),
            finish_reason=reason,
            has_content=reason == "refusal" or any(_says_something(block) for block in content),
            output_bytes=sum(_output_bytes(block) for block in content),
            model=text_of(answer, "model"),
            tier=tier_in(child(answer, "usage")),
        )

    def scan(self, parsed: ParsedRequest) -> AnthropicScan:
        return AnthropicScan()

    def render_error(
        self,
        code: Code,
        message: str,
        *,
        request_id: str,
        param: str | None = None,
        status: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        kind = SHAPES[code].anthropic_type
        if code is Code.UPSTREAM_ERROR and status is not None:
            kind = _TYPE_BY_STATUS.get(status, kind)
        error = {"type": kind, "message": message, **(extra or {})}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})

    def is_upstream_header(self, name: str) -> bool:
        return name.startswith("anthropic-") or name in _HEADERS


def _runs_on_server(tools: list[_Tool] | None, mcp_servers: msgspec.Raw) -> bool:
    if bytes(mcp_servers).strip() not in (b"null", b"[]"):
        return True
    for tool in tools or ():
        dated = _DATED_TOOL.fullmatch(tool.type or "")
        if dated and dated[1] not in _CLIENT_TOOLS:
            return True
    return False


def _goes_on(thread: object) -> bool:
    """Whether the vendor keeps what came before, so that only the new turn is sent."""
    return type(thread) is dict and thread.get("type") != "create"


def _session_in(metadata: msgspec.Raw) -> str:
    """Claude Code writes a JSON text with its session's id into `metadata.user_id`."""
    user = text_of(json_object(bytes(metadata)), "user_id")
    return label(json_object(user.encode()).get("session_id")) if user.startswith("{") else ""


def _says_something(block: dict[str, Any]) -> bool:
    return block.get("type") != "text" or bool(block.get("text"))


def _output_bytes(block: dict[str, Any]) -> int:
    told = block.get("text") or block.get("thinking") or block.get("input") or ""
    return len(told.encode()) if type(told) is str else len(msgspec.json.encode(told))
