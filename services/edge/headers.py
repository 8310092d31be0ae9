"""Which headers cross the gateway, in both directions, and the accounting headers it adds.

Rules: the vendor contracts measured for Claude Code and Codex; everything hop-by-hop (RFC 9110
section 7.6.1), every credential and every proxy trace of the client stops here."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.core.dialects.base import Dialect
from services.core.shortfalls import WindowLeft

NANO_PER_CENT: Final = 10_000_000

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# Never relayed to the client: framing and connection facts of the upstream hop, its cookies and
# server identity, limits that describe our upstream account, and names that are ours.
_NOT_DOWNSTREAM: Final = HOP_BY_HOP | {
    "content-length",
    "content-encoding",
    "set-cookie",
    "server",
    "date",
    "alt-svc",
    "strict-transport-security",
    "via",
    "nel",
    "report-to",
    "cf-ray",
    "cf-cache-status",
    "openai-organization",
    "openai-project",
    "openai-model",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-quota-remaining-credits",
    "x-org-quota-remaining-credits",
    "x-estimated-credits",
    "x-tollgate-request-id",
}
_NOT_DOWNSTREAM_PREFIXES: Final = (
    "anthropic-ratelimit-unified-",
    "x-codex-primary-",
    "x-codex-secondary-",
    "x-codex-credits-",
    "x-amz-",
    "access-control-",
)


def client_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The request's headers by lower-case hyphenated name."""
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name[:5] == "HTTP_"
    }
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        headers["content-type"] = content_type
    return headers


def upstream_lines(
    dialect: Dialect, headers: Mapping[str, str], credential_line: bytes, account_id: str
) -> bytes:
    """The header lines of an upstream call, but for host and content-length. A forwarded value
    with a control character is dropped: it could smuggle a header. An idempotency key is made the
    account's own: all accounts are one to the upstream, which would answer one with what it said
    to another."""
    if name := headers.get("idempotency-key"):
        ours = hashlib.sha256(f"{account_id} {name}".encode()).hexdigest()
        headers = {**headers, "idempotency-key": ours}
    named = _named(headers.get("connection", ""))
    lines = [
        f"{name}: {value}\r\n"
        for name, value in headers.items()
        if (name == "accept" or dialect.is_upstream_header(name))
        and name not in HOP_BY_HOP
        and name not in named
        and value.isprintable()
    ]
    if "content-type" not in headers:
        lines.append("content-type: application/json\r\n")
    lines.append("accept-encoding: identity\r\nuser-agent: tollgate\r\n")
    return "".join(lines).encode("latin-1", "replace") + credential_line


def downstream(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """The upstream's response headers that the client gets, repeated ones kept."""
    out: list[tuple[str, str]] = []
    named: tuple[str, ...] = ()
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1")
        if name == "connection":
            named += _named(raw_value.decode("latin-1"))
        if name in _NOT_DOWNSTREAM or name.startswith(_NOT_DOWNSTREAM_PREFIXES):
            continue
        out.append((name, raw_value.decode("latin-1")))
    return [header for header in out if header[0] not in named] if named else out


def _named(connection: str) -> tuple[str, ...]:
    """The headers that a `connection` header makes those of one hop."""
    return tuple(connection.lower().replace(" ", "").split(",")) if connection else ()


def usd(nano: int) -> str:
    """Two decimals, rounded down, never below zero."""
    cents = max(nano, 0) // NANO_PER_CENT
    return f"{cents // 100}.{cents % 100:02d}"


def accounting(
    *,
    remaining_nano: int,
    estimate_credits: int,
    request_id: str,
    org_nano: int | None = None,
    window: WindowLeft | None = None,
) -> list[tuple[str, str]]:
    """The accounting headers of every answer. Without a spend window the three X-RateLimit values
    are 0: no cap (as 0 means in a key's settings)."""
    out = [
        ("x-ratelimit-limit", "0.00" if window is None else usd(window.limit_nano)),
        ("x-ratelimit-remaining", "0.00" if window is None else usd(window.left_nano)),
        ("x-ratelimit-reset", "0" if window is None else str(window.resets_at_s)),
        ("x-quota-remaining-credits", usd(remaining_nano)),
        ("x-estimated-credits", str(estimate_credits)),
        ("x-tollgate-request-id", request_id),
    ]
    if org_nano is not None:
        out.append(("x-org-quota-remaining-credits", usd(org_nano)))
    return out
