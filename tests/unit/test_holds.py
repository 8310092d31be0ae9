import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.backends import price_files
from services.core.dialects.base import BodyShape
from services.core.holds import (
    SERVER_TOOL_CALLS,
    Bound,
    hold_bound,
    input_tokens_max,
    output_tokens_max,
)
from services.core.prices import PriceBook
from services.core.rating import Unpriced, rate

MODELS = {name: m for name, m in price_files.load().items() if "output" in m.classes}
OVERRIDES = {
    "dear": {
        name: {"input": 10**11, "output": 10**11, "flex+long:output": 10**12} for name in MODELS
    }
}


def book(multiplier=1_000_000):
    return PriceBook(models=MODELS, multipliers_ppm={"default": multiplier}, channels=OVERRIDES)


shapes = st.builds(
    BodyShape,
    text_bytes=st.integers(0, 10**8),
    images=st.integers(0, 100),
    documents=st.integers(0, 20),
    cache_write_1h=st.booleans(),
    server_tools=st.booleans(),
    stored_input=st.booleans(),
)


def split(draw, total, names):
    """`total` tokens, or fewer, spread over the classes `names`."""
    usage = {}
    for name in names:
        usage[name] = draw(st.integers(0, total))
        total -= usage[name]
    return usage


@given(
    data=st.data(),
    name=st.sampled_from(sorted(MODELS)),
    shape=shapes,
    cap=st.none() | st.integers(0, 10**6),
    n=st.integers(1, 8),
    multiplier=st.integers(0, 10**7),
    channels=st.lists(st.sampled_from(["plain", "dear"]), min_size=1, unique=True),
    tier=st.sampled_from(["", "flex", "priority", "unheard-of"]),
)
def test_no_usage_within_the_token_bounds_is_rated_above_the_bound(
    data, name, shape, cap, n, multiplier, channels, tier
):
    """In the tier asked for or the standard one, and also where the input is a long one."""
    model = MODELS[name]
    priced = book(multiplier)
    bound = hold_bound(
        priced,
        channels=channels,
        priced_as=name,
        multiplier_ppm=multiplier,
        shape=shape,
        max_output_tokens=cap,
        n=n,
        tier=tier,
    )
    classes = ["input", "cache_read", "cache_write_5m"]
    if shape.cache_write_1h:
        classes.append("cache_write_1h")
    classes = data.draw(st.permutations(classes))
    usage = split(data.draw, input_tokens_max(model, shape), classes)
    usage["output"] = data.draw(st.integers(0, output_tokens_max(model, cap, n)))
    if shape.server_tools and "web_search" in model.classes:
        usage["web_search"] = data.draw(st.integers(0, SERVER_TOOL_CALLS))
    channel = data.draw(st.sampled_from(channels))
    told = data.draw(st.sampled_from(["", tier]))
    rated = rate(priced, channel=channel, priced_as=name, group="default", usage=usage, tier=told)
    assert rated.cost_nano <= bound.whole_nano
    assert bound.whole_nano == bound.input_nano + bound.output_nano


def bound_of(name="claude-sonnet-4-6", *, channels=("plain",), cap=None, n=1, **shape):
    return hold_bound(
        book(),
        channels=channels,
        priced_as=name,
        multiplier_ppm=1_000_000,
        shape=BodyShape(**{"text_bytes": 0, **shape}),
        max_output_tokens=cap,
        n=n,
    )


def test_stored_input_may_fill_the_context_window():
    model = MODELS["claude-sonnet-4-6"]
    assert input_tokens_max(model, BodyShape(text_bytes=8)) == 4
    known, stored = bound_of(text_bytes=8), bound_of(text_bytes=8, stored_input=True)
    whole = BodyShape(text_bytes=8, stored_input=True)
    assert input_tokens_max(model, whole) == model.context_window
    assert stored.input_nano > 1000 * known.input_nano


def test_the_bound_in_figures():
    # 76 KB are at most 38,000 tokens at $3.75, the cap is 1,000 tokens at $15 per million.
    assert bound_of(text_bytes=76_000, cap=1000) == Bound(142_500_000, 15_000_000, 1000)
    assert bound_of(text_bytes=76_000, cap=1000, cache_write_1h=True).input_nano == 228_000_000
    assert bound_of(text_bytes=1, cap=0) == Bound(3_750, 0, 0)
    assert bound_of(cap=10, n=3).output_nano == 450_000
    assert bound_of().output_nano == 128_000 * 15_000
    assert bound_of(text_bytes=10**9, cap=0).input_nano == 1_000_000 * 3_750
    assert bound_of(images=2, cap=0).input_nano == 2 * 5_000 * 3_750


def test_the_dearest_channel_counts():
    assert bound_of(channels=("plain", "dear"), text_bytes=2, cap=1) == Bound(100_000, 100_000, 1)
    assert bound_of(channels=("plain",), text_bytes=2, cap=1) == Bound(3_750, 15_000, 1)


def test_without_a_price_there_is_no_bound():
    with pytest.raises(Unpriced):
        bound_of("nobody")
    with pytest.raises(Unpriced):
        bound_of(channels=())
