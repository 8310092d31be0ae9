import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.money import (
    cents_down,
    credits_up,
    exact_usd,
    parse_usd,
)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("10", 10_000_000_000),
        ("$1.25", 1_250_000_000),
        ("0.000000001", 1),
        (" 0 ", 0),
        ("-2", -2 * 10**9),
    ],
)
def test_parse_usd(text, nano):
    assert parse_usd(text) == nano


@pytest.mark.parametrize("text", ["", "ten", "NaN", "inf", "0.0000000001", "1,000", "$$1"])
def test_parse_usd_refuses_what_is_no_amount(text):
    with pytest.raises(ValueError, match="not an amount"):
        parse_usd(text)


@given(st.integers(-(10**18), 10**18))
def test_the_exact_text_parses_back(nano):
    assert parse_usd(exact_usd(nano)) == nano
    assert "E" not in exact_usd(nano)


@given(st.integers(-(10**18), 10**18))
def test_what_is_left_is_never_overstated_and_estimates_never_understated(nano):
    assert parse_usd(cents_down(nano)) <= nano < parse_usd(cents_down(nano)) + 10_000_000
    assert (credits_up(nano) - 1) * 1000 < nano <= credits_up(nano) * 1000


@pytest.mark.parametrize(
    ("nano", "down"), [(5_000_000, "0.00"), (10_000_000, "0.01"), (-1, "-0.01")]
)
def test_cents(nano, down):
    assert cents_down(nano) == down
