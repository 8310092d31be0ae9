"""Statements as text, CSV and JSON."""

import csv
import io
import json

import pytest

from services.core.statements import FORMATS, Line, Statement, month, render

SINCE, UNTIL = month("2026-02")
LINES = [
    Line(SINCE + 1, "mov_1:wallet_movement", "topup", "", '=1+1, "quoted"\nünï', 5_000_000_000),
    Line(SINCE + 2, "r1:usage", "usage", "key_1", "completed", -1_234_567),
    Line(UNTIL - 1, "r2:usage", "usage", "key_1", "client_aborted", -1),
]


def _rendered(form: str, lines=tuple(LINES), opening_nano: int = 7) -> str:
    made = Statement("acct_1", "2026-02", SINCE, UNTIL, opening_nano, iter(lines))
    return "".join(render(made, form))


def test_months():
    assert UNTIL - SINCE == 28 * 86_400 * 1_000_000
    assert month("2026-12")[1] == month("2027-01")[0]
    for wrong in ("2026", "2026-13", "2026-1", "02-2026", "2026-02-01", ""):
        with pytest.raises(ValueError, match="YYYY-MM"):
            month(wrong)


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_bytes_each_time(form):
    assert _rendered(form) == _rendered(form)
    assert _rendered(form).endswith("\n")
    assert "\r" not in _rendered(form)


def test_csv_adds_up():
    rows = list(csv.DictReader(io.StringIO(_rendered("csv"))))
    assert [row["kind"] for row in rows] == ["opening", "topup", "usage", "usage", "closing"]
    balance = 7
    for row in rows[1:-1]:
        balance += int(row["amount_nano"])
        assert int(row["balance_nano"]) == balance
    assert int(rows[-1]["balance_nano"]) == balance == 5_000_000_000 - 1_234_568 + 7
    assert rows[2]["amount_usd"] == "-0.001234567"
    assert rows[1]["detail"].startswith("'="), "no formula for a spreadsheet"


@pytest.mark.parametrize(
    ("note", "told"),
    [("-2+3|cmd", "'-2+3|cmd"), ("\t@x", "'@x"), ("a\r\nb\rc", "a b c"), ("\x1b[2J", "\ufffd[2J")],
)
def test_a_note_is_one_cell_and_no_formula(note, told):
    lines = [LINES[0]._replace(detail=note)]
    found = list(csv.DictReader(io.StringIO(_rendered("csv", lines), newline="")))
    assert [row["detail"] for row in found] == ["", told, ""]
    assert found[1]["amount_usd"] == "5"
    assert f"topup  {told.lstrip(chr(39))}  mov_1" in _rendered("text", lines)


def test_json_adds_up():
    answer = json.loads(_rendered("json"))
    assert answer["opening_nano"] == 7
    assert answer["closing_nano"] == 7 + sum(line["amount_nano"] for line in answer["lines"])
    assert answer["totals"] == {
        "topup": {"lines": 1, "nano": 5_000_000_000},
        "usage": {"lines": 2, "nano": -1_234_568},
    }
    assert answer["lines"][0]["detail"] == LINES[0].detail
    assert json.loads(_rendered("json", ())) == {
        "account_id": "acct_1",
        "period": "2026-02",
        "opening_nano": 7,
        "lines": [],
        "closing_nano": 7,
        "totals": {},
    }


def test_text_shows_every_line_and_the_closing_balance():
    text = _rendered("text")
    assert "closing balance  4.998765439" in text
    assert "r2:usage" in text
    assert "usage: 2 lines, -0.001234568" in text
