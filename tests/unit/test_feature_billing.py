"""Two promises of the bill that need many cases: integers never drift, failures are never due."""

import random
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BILLED, Outcome
from services.backends import price_files
from services.core.dialects.base import ResponseFacts
from services.core.ledger import REVENUE, postings_for, wallet
from services.core.money import exact_usd, parse_usd
from services.core.outcomes import Ending, judge
from services.core.prices import PriceBook
from services.core.rating import rate
from tests.parts.terminals import usage

ROWS = 1_000_000
KINDS = 997  # different charges; prime, so that they meet the accounts in every order
ACCOUNTS = 7


@pytest.mark.timeout(60)
def test_a_million_charges_add_up_to_the_nano():
    """Against decimal arithmetic that shares no code: the balance of every wallet is exact."""
    book = PriceBook(models=price_files.load(), multipliers_ppm={"default": 1_000_000})
    draw = random.Random(1)
    names = sorted(name for name, model in book.models.items() if "output" in model.classes)
    charges, expected = [], []
    for number in range(KINDS):
        model = draw.choice(names)
        units = {  # below every long context, which has prices of its own
            name: draw.randrange(30_000)
            for name in ("input", "cache_read", "cache_write_5m", "output")
        }
        rated = rate(book, channel="c", priced_as=model, group="default", usage=units)
        event = usage(
            number, cost_nano=rated.cost_nano, provider_cost_nano=rated.provider_cost_nano
        )
        charges.append(postings_for(event))
        prices = book.models[model].classes
        exact = sum(Decimal(count) * prices[name] for name, count in units.items()) / 10**6
        expected.append(exact.to_integral_value(ROUND_HALF_UP))
    balances: dict[str, int] = {}
    owed = [Decimal(0)] * ACCOUNTS
    payer = charges[0][0].account
    for row in range(ROWS):
        kind, account = row % KINDS, row % ACCOUNTS
        for name, amount_nano in charges[kind]:
            key = wallet(f"acct_{account}") if name == payer else name
            balances[key] = balances.get(key, 0) + amount_nano
        owed[account] += expected[kind]
    for account, due in enumerate(owed):
        assert -balances[wallet(f"acct_{account}")] == due
    assert sum(balances.values()) == 0
    assert balances[REVENUE] == sum(owed) > 10**12
    assert all(type(amount) is int for amount in balances.values())
    for amount_nano in balances.values():
        assert parse_usd(exact_usd(amount_nano)) == amount_nano
    # The same sum in floating point is wrong, so the rows can tell the difference.
    floats = 0.0
    for row in range(ROWS):
        floats += float(expected[row % KINDS]) / 10**9
    assert floats != float(balances[REVENUE] / 10**9)


FACTS = st.builds(
    ResponseFacts,
    usage=st.none() | st.dictionaries(st.sampled_from(["input", "output"]), st.integers(0, 10**9)),
    finished=st.booleans(),
    finish_reason=st.sampled_from(["", "stop", "max_tokens"]),
    has_content=st.booleans(),
    output_bytes=st.integers(0, 10**9),
    error=st.none() | st.just(("overloaded_error", "busy")),
)


@given(
    status=st.integers(100, 999).filter(lambda status: not 200 <= status < 300),
    ending=st.sampled_from(Ending),
    answer=st.none() | FACTS,
    streaming=st.booleans(),
    relayed=st.booleans(),
    text_bytes=st.integers(0, 10**8),
)
def test_no_status_but_2xx_is_ever_due(status, ending, answer, streaming, relayed, text_bytes):
    """Whatever else is known of the answer, and however the exchange ended."""
    verdict = judge(
        ending,
        status=status,
        answer=answer,
        streaming=streaming,
        relayed=relayed,
        text_bytes=text_bytes,
    )
    assert not verdict.billed
    assert verdict.outcome in (Outcome.FAILED, Outcome.CLIENT_GONE)
    assert verdict.outcome not in BILLED
    assert verdict.usage == {}
