import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.tiers import (
    Rate,
    is_long,
    is_tier,
    price_of,
    rate_of,
    served_prices,
    told_tier,
)

PRICES = {
    "input": 10,
    "output": 40,
    "flex:input": 5,
    "priority:output": 80,
    "long:input": 20,
    "long:output": 60,
    "flex+long:input": 12,
}


@pytest.mark.parametrize(
    ("usage_class", "tier", "long", "price"),
    [
        ("input", "", False, 10),
        ("input", "flex", False, 5),
        ("output", "flex", False, 40),  # flex names no price of it
        ("output", "priority", False, 80),
        ("output", "unknown", False, 40),
        ("input", "", True, 20),
        ("input", "flex", True, 12),  # the combination has a price of its own
        ("output", "priority", True, 80),  # the dearer of the two, never multiplied
        ("output", "flex", True, 60),
        ("cache_read", "flex", True, None),
    ],
)
def test_which_price_holds(usage_class, tier, long, price):
    assert price_of(PRICES, usage_class, tier, long) == price
    served = served_prices(PRICES, [usage_class], tier, long)
    assert served.get(usage_class) == price


sets = st.dictionaries(
    st.builds(
        lambda name, tier, long: Rate(name, tier, long).key,
        st.sampled_from(["input", "output"]),
        st.sampled_from(["", "flex", "priority"]),
        st.booleans(),
    ),
    st.integers(0, 10**12),
)


@given(sets, st.sampled_from(["input", "output"]), st.sampled_from(["", "flex", "priority", "x"]))
def test_a_long_input_never_makes_anything_cheaper(prices, usage_class, tier):
    short = price_of(prices, usage_class, tier, False)
    longer = price_of(prices, usage_class, tier, True)
    assert short is None or (longer is not None and longer >= short)


@given(
    st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    st.just("") | st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True).filter(is_tier),
    st.booleans(),
)
def test_a_key_says_what_its_price_is_for(usage_class, tier, long):
    rate = Rate(usage_class, tier, long)
    assert rate_of(rate.key) == rate


def test_the_whole_input_makes_a_request_long():
    assert not is_long({"input": 200_000, "output": 10**6}, 200_000)
    assert is_long({"input": 1, "cache_read": 100_000, "cache_write_5m": 100_000}, 200_000)
    assert not is_long({"input": 10**9}, 0)


@pytest.mark.parametrize(
    ("told", "tier"),
    [
        ("default", ""),
        ("standard", ""),
        ("standard_only", ""),
        ("auto", None),
        (None, None),
        (7, None),
        ({}, None),
        ("", None),
        ("long", None),  # would be taken for the length
        ("flex:output", None),
        ("Priority", None),
        ("x" * 33, None),
        ("flex", "flex"),
        ("priority", "priority"),
    ],
)
def test_what_a_vendor_calls_a_tier(told, tier):
    assert told_tier(told) == tier
