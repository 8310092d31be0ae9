"""What every wire protocol offers: reading a request, scanning an answer, rendering an error.

A dialect does no I/O and keeps no state; a `StreamScan` holds the state of one answer."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from schemas.errors import Code
from services.core.json_span import replace_value


class BodyShape(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the input tokens of a body: `text_bytes` is its size without base64 payloads,
    `images` and `documents` are counted one by one. The flags tell that the body can make the
    vendor charge a long-lived cache write, calls of tools that the vendor runs, or input that the
    vendor has stored."""

    text_bytes: int
    images: int = 0
    documents: int = 0
    cache_write_1h: bool = False
    server_tools: bool = False
    stored_input: bool = False


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The few facts of a request that routing and money need; the body itself stays bytes.
    `wants_usage` is False only for a chat stream whose client did not ask for the usage chunk.
    `tier` is the service tier asked for by name, empty for the provider's usual one."""

    model: str
    stream: bool
    max_output_tokens: int | None
    shape: BodyShape
    n: int = 1
    session_id: str = ""
    agent_id: str = ""
    wants_usage: bool = True
    tier: str = ""


class ResponseFacts(msgspec.Struct, kw_only=True):
    """What a whole (non-streaming) answer says. `usage` is in the classes of
    `services.core.usage`; `error` is (type, message) when the body is an error object;
    `finished` means that the answer says how it ended; `tier` is None when it does not say in
    which service tier it was made."""

    usage: dict[str, int] | None = None
    finished: bool = False
    finish_reason: str = ""
    has_content: bool = False
    error: tuple[str, str] | None = None
    output_bytes: int = 0
    model: str = ""
    tier: str | None = None

    @property
    def output_told(self) -> bool:
        return self.usage is not None

    @property
    def complete_at_eof(self) -> bool:
        return False  # a whole answer says so


def with_model(body: bytes, parsed: ParsedRequest, upstream_model: str) -> bytes:
    """`body` asking for `upstream_model`: itself when that is what the client wrote."""
    if upstream_model == parsed.model:
        return body
    return replace_value(body, "model", msgspec.json.encode(upstream_model))


class StreamScan(Protocol):
    """Follows one streamed answer while its bytes are relayed; only whole events are looked at."""

    @property
    def usage(self) -> dict[str, int] | None:
        """What was told so far, in the classes of `services.core.usage`."""

    @property
    def output_told(self) -> bool:
        """`usage` holds the count of the output made so far, not only of the input."""

    @property
    def finished(self) -> bool:
        """The end marker was seen. It lies in the bytes that the same `feed` returned: the caller
        holds these back until its terminal event is durable."""

    @property
    def complete_at_eof(self) -> bool:
        """An end of the stream now is a whole answer although no end marker came."""

    @property
    def finish_reason(self) -> str: ...

    @property
    def has_content(self) -> bool:
        """Text, a tool call, reasoning or a refusal was seen."""

    @property
    def output_bytes(self) -> int:
        """Bytes of text, reasoning and tool arguments as they stand in the JSON (escapes count as
        written). Measured when read: ask seldom."""

    @property
    def error(self) -> tuple[str, str] | None:
        """(type, message) of an error event of the upstream."""

    @property
    def at_boundary(self) -> bool:
        """No event is half relayed, so that an event may be put in."""

    @property
    def lacks_end(self) -> bool:
        """The stream stands at the end of an event, but for its blank line."""

    @property
    def model(self) -> str: ...

    @property
    def tier(self) -> str | None:
        """The service tier told so far, None while it is not; empty for the standard one."""

    def feed(self, data: bytes) -> bytes:
        """The bytes to relay now: `data` itself, unless an extra usage chunk is taken out."""

    def close(self) -> bytes:
        """At the end of the stream: bytes still held, empty unless chunks are taken out."""

    def ping(self) -> bytes:
        """One keep-alive event for a boundary; empty while none can be sent."""

    def render_error(self, code: Code, message: str) -> bytes:
        """The frames that end the stream with an error, after closing an unfinished event; empty
        when the upstream's own error, as the client of this dialect reads it, was relayed."""

    def render_cut(self, usage: Mapping[str, int]) -> bytes:
        """The frames that end the stream at a boundary as an answer that reached its output limit,
        with `usage` (what is billed) where this client gets one."""


class Dialect(Protocol):
    """One wire protocol. `path` is ours and the client's, `upstream_path` follows a base URL."""

    name: str
    path: str
    upstream_path: str

    def parse_request(self, body: bytes, headers: Mapping[str, str]) -> ParsedRequest:
        """The facts of `body`; header names are lower-case.

        Raises `InvalidRequest` with the path of the wrong field."""

    def upstream_body(self, body: bytes, parsed: ParsedRequest, upstream_model: str) -> bytes:
        """What is sent upstream: `body` itself when nothing has to be edited."""

    def parse_response(self, body: bytes) -> ResponseFacts:
        """The facts of a whole answer. Never raises: a body that is no answer is an `error`."""

    def scan(self, parsed: ParsedRequest) -> StreamScan:
        """A fresh scan for the streamed answer to `parsed`."""

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
        """A JSON error body in the vendor's shape. `status` is the HTTP status it goes out with:
        it names the error's type where `code` alone (`upstream_error`) does not; `extra` is
        merged into the `error` object."""

    def is_upstream_header(self, name: str) -> bool:
        """Whether the client's header `name` (lower-case) goes upstream."""
