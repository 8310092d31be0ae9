"""The live lines: what they say, and that they never grow or block."""

import io

import msgspec

from schemas.errors import Code, Outcome, Stage
from schemas.events import Error, Usage
from services.backends.sql.accounts import Balance
from services.backends.sql.engine import DatabaseUnavailable
from services.cli.context import table
from services.meter.live import Live, line_of

COMMON = {
    "event_id": "r:usage",
    "request_id": "r",
    "account_id": "acct_a",
    "occurred_at": 1_790_000_000_000_000,
    "source": "edge",
    "model": "claude-sonnet-4-6",
    "status": 200,
}
USAGE = Usage(
    **COMMON,
    outcome=Outcome.COMPLETED,
    usage={"input": 1204, "output": 380, "cache_read": 18_000, "cache_write_5m": 2},
    multiplier_ppm=1_000_000,
    cost_nano=12_345_600,
    charged_nano=12_345_600,
)
ERROR = Error(**COMMON, outcome=Outcome.FAILED, code=Code.TIMEOUT, stage=Stage.UPSTREAM)


def balance(limit_nano: int = 10_000_000_000, settled_nano: int = 12_345_600) -> Balance:
    return Balance(0, limit_nano, settled_nano, 0, 0)


def test_a_billed_request_shows_tokens_cost_and_balance():
    line = line_of(USAGE, 9_987_654_400)
    for part in ("claude-sonnet-4-6", "1,204", "380", "18,002", "$0.0123456", "balance $9.98"):
        assert part in line
    assert "\n" not in line


def test_a_failure_says_that_it_was_free_and_why():
    assert "free: timeout" in line_of(ERROR, 10_000_000_000)
    assert "balance $10.00" in line_of(ERROR, 10_000_000_000)


def test_a_burst_is_cut_to_a_hundred_lines_and_a_number():
    out = io.StringIO()
    asked = []
    live = Live(lambda account: asked.append(account) or balance(), out)
    live.show([USAGE] * 5000)
    live.show([ERROR] * 7000)
    live.drain()
    lines = out.getvalue().splitlines()
    assert lines[0] == "... and 9900 more"
    assert len(lines) == 101
    assert asked == ["acct_a"]
    live.drain()
    assert len(out.getvalue().splitlines()) == 101


def test_neither_a_closed_terminal_nor_a_database_that_is_away_is_felt():
    def away(account):
        raise DatabaseUnavailable("away")

    out = io.StringIO()
    live = Live(away, out)
    live.show([USAGE])
    live.drain()
    assert out.getvalue().endswith("balance ?\n")
    out.close()
    live.show([USAGE])
    live.drain()


def test_a_client_makes_up_no_line_and_moves_no_cursor():
    """The model of a refused request is whatever its client wrote."""
    forged = msgspec.structs.replace(ERROR, model="x\n12:00:00  claude  $0.00 \x1b[31m")
    line = line_of(forged, 10_000_000_000)
    assert line.isprintable()
    assert "free: timeout" in line
    assert table(("model",), [[forged.model]]).count("\n") == 1
