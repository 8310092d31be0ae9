"""A full spend window in each dialect and in the form that Codex shows, and the headers."""

import falcon
import orjson
import pytest

from services.core.budgets import LimitFailure
from services.core.dialects import DIALECTS
from services.core.shortfalls import WindowLeft, refusal
from services.edge.exchange import Exchange
from services.edge.headers import accounting
from services.edge.refuse import render

USD = 1_000_000_000
NOW = 1_800_000_000_000_000


def exchange(dialect, agent=""):
    headers = {"user-agent": agent}
    return Exchange("r", DIALECTS[dialect], {"PATH_INFO": "/"}, headers, 0.0, NOW)


def answered(dialect, agent="", fits_at=NOW + 90_000_000):
    full = LimitFailure(
        limit_id="w",
        kind="window_5h",
        limit_nano=50 * USD,
        settled_nano=50 * USD,
        leased_nano=0,
        missing_nano=USD,
        only_leased=False,
        fits_at=fits_at,
    )
    resp = falcon.Response()
    refused = refusal([full], "own", NOW)
    status = render(resp, DIALECTS[dialect], refused, "r", exchange(dialect, agent))
    return status, resp.headers, orjson.loads(resp.data)["error"]


def test_messages_clients_wait_and_do_not_repeat():
    status, headers, error = answered("anthropic")
    assert (status, error["type"]) == (429, "rate_limit_error")
    assert (headers["retry-after"], headers["x-should-retry"]) == ("90", "false")
    assert error["message"].startswith(
        "rate_limit_5h exceeded: 50.00 / 50.00 used; resets at 2027-"
    )


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_openai_clients_wait(dialect):
    status, headers, error = answered(dialect)
    assert (status, error["type"], error["code"]) == (429, *["rate_limit_exceeded"] * 2)
    assert headers["retry-after"] == "90"
    assert "x-should-retry" not in headers


def test_codex_stops_and_shows_when():
    status, headers, error = answered("responses", "codex_cli_rs/0.50")
    assert status == 429
    assert "retry-after" not in headers
    assert (error["type"], error["code"]) == ("usage_limit_reached", "rate_limit_exceeded")
    assert (error["resets_at"], bool(error["plan_type"])) == (NOW // 1_000_000 + 90, True)
    # On the chat route it is a client like any other.
    assert answered("chat", "codex_cli_rs/0.50")[1]["retry-after"] == "90"


def test_without_a_known_end_there_is_no_retry_after():
    _, headers, error = answered("chat", fits_at=None)
    assert "retry-after" not in headers
    assert "resets at" not in error["message"]


def test_the_headers_tell_the_window_and_the_orgs_wallet():
    window = WindowLeft(50 * USD, 42_189_999_999, 1_716_705_600)
    told = dict(
        accounting(
            remaining_nano=192_400_000_000,
            estimate_credits=7,
            request_id="r",
            org_nano=8_420_650_000_000,
            window=window,
        )
    )
    assert told == {
        "x-ratelimit-limit": "50.00",
        "x-ratelimit-remaining": "42.18",
        "x-ratelimit-reset": "1716705600",
        "x-quota-remaining-credits": "192.40",
        "x-org-quota-remaining-credits": "8420.65",
        "x-estimated-credits": "7",
        "x-tollgate-request-id": "r",
    }
