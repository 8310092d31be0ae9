from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.core.prices import ModelPrice, PriceBook
from services.core.rating import Unpriced, ceiling_nano, class_prices, cost_nano, rate

CLASSES = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "web_search")
prices = st.fixed_dictionaries({name: st.integers(0, 10**14) for name in CLASSES})
usages = st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 10**9))
multipliers = st.integers(0, 10**9)


@given(usages, prices, multipliers)
def test_the_formula_in_integers(usage, price, multiplier):
    cost = cost_nano(usage, price, multiplier)
    exact = sum(count * price[name] for name, count in usage.items()) * multiplier
    assert type(cost) is int
    assert abs(cost * 10**12 - exact) <= 5 * 10**11  # rounded once, to the nearest nano
    assert cost == (exact + 5 * 10**11) // 10**12


@given(usages, prices, multipliers, st.sampled_from(CLASSES), st.integers(0, 10**6))
def test_more_use_never_costs_less(usage, price, multiplier, name, more):
    grown = {**usage, name: usage.get(name, 0) + more}
    assert cost_nano(grown, price, multiplier) >= cost_nano(usage, price, multiplier)


@given(usages, usages, prices, multipliers)
def test_splitting_a_usage_differs_by_at_most_one_nano(first, second, price, multiplier):
    whole = {name: first.get(name, 0) + second.get(name, 0) for name in CLASSES}
    parts = cost_nano(first, price, multiplier) + cost_nano(second, price, multiplier)
    assert abs(cost_nano(whole, price, multiplier) - parts) <= 1


@given(usages, prices)
def test_the_multiplier_scales(usage, price):
    assert cost_nano(usage, price, 0) == 0
    assert abs(cost_nano(usage, price, 2_000_000) - 2 * cost_nano(usage, price, 1_000_000)) <= 1
    assert cost_nano(usage, price, 1_000_000) == cost_nano(
        usage, {name: value * 5 for name, value in price.items()}, 200_000
    )


@given(usages, prices, multipliers)
def test_class_ceilings_add_up_to_at_least_the_cost(usage, price, multiplier):
    ceiling = sum(ceiling_nano(count, price[name], multiplier) for name, count in usage.items())
    assert 0 <= ceiling - cost_nano(usage, price, multiplier) <= len(usage)


@pytest.mark.parametrize("wrong", [True, 1.0, -1, "1", None])
@pytest.mark.parametrize("place", ["units", "informing units", "multiplier"])
def test_only_non_negative_integers_are_counted(wrong, place):
    usage = {"units": {"input": wrong}, "informing units": {"reasoning": wrong}}.get(place, {})
    with pytest.raises(ValueError, match="non-negative integer"):
        cost_nano(usage, {"input": 1}, wrong if place == "multiplier" else 1)


@pytest.mark.parametrize("wrong", [True, 1.0, -1, "1"])
def test_only_non_negative_integers_are_prices(wrong):
    with pytest.raises(ValueError, match="non-negative integer"):
        cost_nano({"input": 1}, {"input": wrong}, 1)


def test_known_costs():
    haiku = {"input": 10**9, "output": 5 * 10**9, "cache_read": 10**8, "web_search": 10**13}
    assert cost_nano({"input": 1_000_000, "output": 1_000_000}, haiku, 1_000_000) == 6 * 10**9
    assert cost_nano({"web_search": 1}, haiku, 1_000_000) == 10_000_000  # one cent a search
    assert cost_nano({"cache_read": 1}, haiku, 800_000) == 80
    assert cost_nano({"input": 1}, {"input": 499_999}, 1_000_000) == 0
    assert cost_nano({"input": 1}, {"input": 500_000}, 1_000_000) == 1


def book(**channels):
    model = ModelPrice(
        model="m",
        vendor="v",
        context_window=1000,
        max_output_tokens=100,
        classes={"input": 1_000_000, "output": 4_000_000},
        provider_classes={"input": 500_000, "output": 2_000_000},
    )
    return PriceBook(models={"m": model}, multipliers_ppm={"default": 1_500_000}, channels=channels)


def test_a_channel_price_overrides_the_list_price_class_by_class():
    priced = book(dear={"m": {"input": 9_000_000}})
    assert class_prices(priced, "dear", "m") == {"input": 9_000_000, "output": 4_000_000}
    assert class_prices(priced, "other", "m") == {"input": 1_000_000, "output": 4_000_000}
    rated = rate(
        priced, channel="dear", priced_as="m", group="default", usage={"input": 10, "output": 10}
    )
    assert rated == (195, 25, 1_500_000)


def test_the_provider_charges_the_list_price_when_nothing_else_is_known():
    plain = PriceBook(
        models={
            "m": ModelPrice(
                model="m",
                vendor="v",
                context_window=1,
                max_output_tokens=1,
                classes={"input": 10**6},
            )
        },
        multipliers_ppm={"default": 0},
    )
    assert rate(plain, channel="c", priced_as="m", group="default", usage={"input": 3}) == (0, 3, 0)


@pytest.mark.parametrize(
    ("priced_as", "group", "usage"),
    [
        ("x", "default", {}),
        ("m", "x", {}),
        ("m", "default", {"cache_read": 1}),
        ("m", "default", {"images": 1}),
    ],
)
def test_nothing_unpriced_is_rated(priced_as, group, usage):
    with pytest.raises(Unpriced):
        rate(book(), channel="c", priced_as=priced_as, group=group, usage=usage)


def test_reasoning_is_inside_output_and_zero_units_need_no_price():
    usage = {"output": 10, "reasoning": 7, "cache_read": 0}
    assert rate(book(), channel="c", priced_as="m", group="default", usage=usage).cost_nano == 60


TIERS = ("", "flex", "priority", "none-of-them")
any_class = st.sampled_from((*CLASSES, "images", "seconds", "characters", "calls"))
price_sets = st.dictionaries(
    st.builds(
        lambda name, served: f"{served}{name}",
        any_class,
        st.sampled_from(["", "flex:", "priority:", "long:", "flex+long:", "priority+long:"]),
    ),
    st.integers(0, 10**14),
)
LONG_AT = 200_000


def tiered(classes, own, multiplier):
    model = ModelPrice(
        model="m",
        vendor="v",
        context_window=10**6,
        max_output_tokens=10**6,
        classes=classes,
        long_context_tokens=LONG_AT,
    )
    return PriceBook(
        models={"m": model}, multipliers_ppm={"g": multiplier}, channels={"c": {"m": own}}
    )


def oracle_price(classes, own, name, tier, long):
    """By the words of the documentation, with other means than the code."""
    known = dict(classes) | own
    plain = known.get(name)
    served = known.get(f"{tier}:{name}", plain)
    if not long:
        return served
    both = known.get(f"{tier}+long:{name}", known.get(f"long:{name}"))
    found = [price for price in (served, both) if price is not None]
    return max(found) if found else None


@given(
    price_sets,
    price_sets,
    st.dictionaries(any_class, st.integers(0, 10**6), max_size=5),
    multipliers,
    st.sampled_from(TIERS),
)
def test_every_tier_length_and_class_against_fractions(classes, own, usage, multiplier, tier):
    tokens = sum(usage.get(name, 0) for name in CLASSES[:4])
    prices = {n: oracle_price(classes, own, n, tier, tokens > LONG_AT) for n in usage}
    asked = {name for name, count in usage.items() if count}
    book = tiered(classes, own, multiplier)

    def rated():
        return rate(book, channel="c", priced_as="m", group="g", usage=usage, tier=tier)

    if any(prices[name] is None for name in asked):
        with pytest.raises(Unpriced):
            rated()
        return
    assume(_priced_for_us(book, usage, tier))
    exact = sum(
        (Fraction(usage[name] * prices[name] * multiplier, 10**12) for name in asked), Fraction(0)
    )
    cost = rated().cost_nano
    assert type(cost) is int
    assert abs(cost - exact) <= Fraction(1, 2)  # additive per class, rounded once
    assert cost == (exact + Fraction(1, 2)).__floor__()


def _priced_for_us(book, usage, tier):
    """The provider's list price of every class is known too."""
    try:
        rate(book, channel="elsewhere", priced_as="m", group="g", usage=usage, tier=tier)
    except Unpriced:
        return False
    return True


whole_sets = st.fixed_dictionaries(
    {name: st.integers(0, 10**14) for name in CLASSES},
    optional={
        f"{served}{name}": st.integers(0, 10**14)
        for name in CLASSES
        for served in ("flex:", "long:", "flex+long:")
    },
)


@given(
    whole_sets,
    usages,
    multipliers,
    st.sampled_from(["", "flex"]),
    st.sampled_from(CLASSES),
    st.integers(0, 10**6),
)
def test_more_use_never_costs_less_in_any_tier(classes, usage, multiplier, tier, name, more):
    """Also where the input becomes long."""
    book = tiered(classes, {}, multiplier)
    grown = {**usage, name: usage.get(name, 0) + more}
    costs = [
        rate(book, channel="c", priced_as="m", group="g", usage=each, tier=tier)
        for each in (usage, grown)
    ]
    assert costs[0].cost_nano <= costs[1].cost_nano
    assert costs[0].provider_cost_nano <= costs[1].provider_cost_nano


def test_what_the_provider_charges_on_one_channel():
    plain = book(own={"m": {"output": 8_000_000}})
    priced = PriceBook(
        models=plain.models,
        multipliers_ppm=plain.multipliers_ppm,
        channels=plain.channels,
        channel_costs={"own": {"m": {"output": 1_000_000}}},
    )
    usage = {"input": 10, "output": 10}
    own = rate(priced, channel="own", priced_as="m", group="default", usage=usage)
    other = rate(priced, channel="other", priced_as="m", group="default", usage=usage)
    assert own == (135, 15, 1_500_000)
    assert other == (75, 25, 1_500_000)
