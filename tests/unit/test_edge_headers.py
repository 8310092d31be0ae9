"""Which headers cross the gateway."""

import pytest

from services.core.dialects import DIALECTS
from services.edge.headers import accounting, client_headers, downstream, upstream_lines, usd
from services.edge.resources.health import is_this_machine

CREDENTIAL = b"x-api-key: upstream-secret\r\n"


def lines(headers: dict[str, str], dialect: str = "anthropic", account: str = "acct") -> list[str]:
    sent = upstream_lines(DIALECTS[dialect], headers, CREDENTIAL, account)
    return sent.decode().split("\r\n")


def test_unknown_anthropic_headers_go_upstream_unchanged():
    out = lines({"anthropic-beta": "a,zzz-2099", "anthropic-foo": "x", "content-type": "a/b"})
    assert "anthropic-beta: a,zzz-2099" in out
    assert "anthropic-foo: x" in out


def test_credentials_hop_by_hop_and_traces_stop_here():
    hidden = {
        "authorization": "Bearer sk-toll-client",
        "x-api-key": "sk-toll-client",
        "x-goog-api-key": "sk-toll-client",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "forwarded": "for=1.2.3.4",
        "via": "1.1 x",
        "te": "trailers",
        "connection": "keep-alive, anthropic-private",
        "anthropic-private": "named by connection",
        "transfer-encoding": "chunked",
        "accept-encoding": "gzip",
        "content-length": "3",
        "host": "gateway",
    }
    out = "\n".join(lines(hidden))
    assert "sk-toll" not in out
    for name in ("cookie", "forwarded", "via", "te:", "anthropic-private", "chunked", "gzip"):
        assert name not in out
    assert out.count("x-api-key: upstream-secret") == 1
    assert "accept-encoding: identity" in out


def test_two_accounts_never_share_an_idempotency_key_upstream():
    def named(account: str) -> str:
        out = lines({"idempotency-key": "order-1"}, "chat", account)
        return next(line for line in out if line.startswith("idempotency-key: "))

    assert named("a") == named("a") != named("b")
    assert "order-1" not in named("a")


def test_a_value_with_a_control_character_is_dropped():
    out = lines({"anthropic-beta": "a\x0bb", "anthropic-version": "2023-06-01"})
    assert "anthropic-version: 2023-06-01" in out
    assert not [line for line in out if line.startswith("anthropic-beta")]


def test_downstream_drops_framing_and_names_that_are_ours():
    upstream = [
        (b"content-type", b"application/json"),
        (b"request-id", b"req_1"),
        (b"retry-after", b"3"),
        (b"x-ratelimit-limit-requests", b"9"),
        (b"x-ratelimit-limit", b"9"),
        (b"transfer-encoding", b"chunked"),
        (b"set-cookie", b"a=b"),
        (b"openai-model", b"other"),
        (b"anthropic-ratelimit-unified-status", b"x"),
        (b"anthropic-ratelimit-requests-limit", b"7"),
        (b"x-one-hop", b"1"),
        (b"connection", b"Keep-Alive, X-One-Hop"),
        (b"x-codex-primary-used-percent", b"99"),
    ]
    assert downstream(upstream) == [
        ("content-type", "application/json"),
        ("request-id", "req_1"),
        ("retry-after", "3"),
        ("x-ratelimit-limit-requests", "9"),
        ("anthropic-ratelimit-requests-limit", "7"),
    ]


def test_client_headers_are_lower_case_with_hyphens():
    environ = {"HTTP_X_API_KEY": "k", "CONTENT_TYPE": "a/b", "PATH_INFO": "/"}
    assert client_headers(environ) == {"x-api-key": "k", "content-type": "a/b"}


def test_money_in_headers_is_rounded_down_and_never_negative():
    assert usd(1_999_999_999) == "1.99"
    assert usd(10_000_000) == "0.01"
    assert usd(9_999_999) == "0.00"
    assert usd(-5) == "0.00"
    headers = dict(accounting(remaining_nano=5, estimate_credits=7, request_id="r"))
    assert headers["x-estimated-credits"] == "7"
    assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(headers)


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("192.0.2.1", False), ("::ffff:192.0.2.1", False), ("fd00::1", False), ("", False)],
)  # fmt: skip
def test_metrics_are_for_callers_on_this_machine(address, here):
    """An edge that listens on `::` sees IPv4 addresses inside IPv6 ones."""
    assert is_this_machine(address) is here
