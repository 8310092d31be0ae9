"""Statements of a real ledger: lines sum to the postings, on both databases."""

import json
from datetime import UTC, datetime

import pytest

from schemas.events import TOPIC
from services.backends.bus.port import Message
from services.backends.sql import wallet_lines
from services.backends.sql.wallet_lines import WalletLines
from services.cli.main import main
from services.core.statements import Statement, month, render
from tests.parts.books import USD, Books, now_us, records
from tests.parts.postgres import database_url  # noqa: F401

THIS_MONTH = datetime.now(UTC).strftime("%Y-%m")


@pytest.fixture
def books(database_url, tmp_path):  # noqa: F811
    world = Books(database_url, tmp_path)
    yield world
    world.close()


def _feed(books, given) -> None:
    sink = books.sink()
    at = sink.claim(0).next_offset
    sink.handle(0, [Message(TOPIC, 0, at + n, *each, now_us()) for n, each in enumerate(given)])


def _made(books, account_id: str, period: str) -> Statement:
    lines = WalletLines(books.engine)
    since, until = month(period)
    return Statement(
        account_id,
        period,
        since,
        until,
        lines.balance_before(account_id, since),
        list(lines.between(account_id, since, until)),
    )


def test_lines_sum_to_the_postings(books, monkeypatch):
    monkeypatch.setattr(wallet_lines, "_PAGE", 3)
    account_id = books.account(10)
    other = books.lease(books.account(3), USD)
    lease = books.lease(account_id, 2 * USD)
    free = lease.request()
    last_month = lease.usage("r-old")
    last_month.occurred_at = month(THIS_MONTH)[0] - 1
    events = [*(each for _ in range(5) for each in lease.pair()), last_month, *other.pair()]
    _feed(books, books.sql_records() + records([*events, free, lease.error(free.request_id)]))
    made = _made(books, account_id, THIS_MONTH)
    assert made.opening_nano == -4_500_000
    assert [line.kind for line in made.lines] == ["topup"] + ["usage"] * 5
    assert len({line.event_id for line in made.lines}) == 6
    total = made.opening_nano + sum(line.amount_nano for line in made.lines)
    assert total == books.wallet(account_id) == 10 * USD - 6 * 4_500_000
    assert {line.key_id for line in made.lines[1:]} == {lease.key_id}
    first = "".join(render(made, "csv"))
    assert "".join(render(_made(books, account_id, THIS_MONTH), "csv")) == first
    assert _made(books, account_id, "2020-01").lines == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_command(books, monkeypatch, capsys, tmp_path):
    account_id = books.account(10)
    _feed(books, books.sql_records() + records(books.lease(account_id, USD).pair()))

    def said(*more: str) -> str:
        argv = ["tollgate", "statement", "--account", account_id, "--period", THIS_MONTH, *more]
        monkeypatch.setattr("sys.argv", [*argv, "--data-dir", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return out.out if not ended.value.code else out.err

    assert "closing balance  9.9955" in said()
    assert json.loads(said("--json"))["closing_nano"] == 10 * USD - 4_500_000
    assert said("--format", "json") == said("--json")
    assert said("--format", "csv").splitlines()[0].startswith("time,event_id")
    assert "YYYY-MM" in said("--period", "May")
