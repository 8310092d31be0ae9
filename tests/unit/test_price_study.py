"""Re-rating under other prices, margins, and prices below cost."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Code, Outcome, Stage
from schemas.events import Error, Usage
from services.core.price_study import Margins, PriceStudy, below_cost
from services.core.prices import ChannelPrice, ModelPrice, Overrides, PriceBook
from services.core.rating import rate


def _model(name: str, **classes: int) -> ModelPrice:
    return ModelPrice(
        model=name, vendor="v", context_window=1, max_output_tokens=1, classes=classes
    )


BOOK = PriceBook(
    models={"a": _model("a", input=1_000_000_000, output=5_000_000_000), "b": _model("b", input=7)},
    multipliers_ppm={"default": 1_000_000, "cheap": 500_000},
    channels={"special": {"a": {"input": 2_000_000_000}}},
)


def _usage(priced_as="a", channel="main", group="default", **units) -> Usage:
    rated = rate(BOOK, channel=channel, priced_as=priced_as, group=group, usage=units)
    return Usage(
        event_id="e", account_id="x", occurred_at=1, source="edge", status=200,
        outcome=Outcome.COMPLETED, priced_as=priced_as, channel=channel, group=group, usage=units,
        price_version="pv", multiplier_ppm=rated.multiplier_ppm, cost_nano=rated.cost_nano,
        charged_nano=rated.cost_nano, provider_cost_nano=rated.provider_cost_nano,
    )  # fmt: skip


@given(
    st.integers(0, 10**9),
    st.sampled_from(["main", "special"]),
    st.sampled_from(["default", "cheap"]),
)
def test_the_same_prices_change_nothing(units, channel, group):
    study = PriceStudy(Overrides(models=BOOK.models))
    study.add(_usage(channel=channel, group=group, input=units, output=3), BOOK)
    line = study.models["a"]
    assert (line.requests, line.unpriced) == (1, 0)
    assert line.then_nano == line.now_nano


def test_other_prices():
    study = PriceStudy(
        Overrides(models={"a": _model("a", input=2_000_000_000, output=5_000_000_000)})
    )
    for event in (
        _usage(input=1000, output=100),
        _usage(input=1000, output=100, group="cheap"),
        _usage(priced_as="b", input=10**6),
        _usage(input=1000, channel="special"),
    ):
        study.add(event, BOOK)
    a, b = study.models["a"], study.models["b"]
    assert (a.requests, a.now_nano, a.then_nano) == (3, 4_250_000, 5_750_000)
    assert (b.now_nano, b.then_nano) == (7, 7), "not among the other prices"


def test_what_the_other_prices_do_not_name_is_told():
    study = PriceStudy(Overrides(models={"a": _model("a", input=1)}))
    study.add(_usage(output=10), BOOK)
    study.add(_usage(input=10**6), BOOK)
    line = study.models["a"]
    assert (line.requests, line.unpriced, line.then_nano) == (2, 1, 1)
    assert line.now_nano == 1_000_000_000


def test_margins_count_what_free_answers_cost():
    margins = Margins()
    margins.add(_usage(input=1000))
    margins.add(_usage(input=1000, group="cheap"))
    margins.add(
        Error(
            event_id="f", account_id="x", occurred_at=1, source="edge", status=502, priced_as="a",
            outcome=Outcome.FAILED, code=Code.UPSTREAM_ERROR, stage=Stage.STREAM, channel="main",
            provider_cost_nano=600_000,
        )
    )  # fmt: skip
    (line,) = margins.lines.values()
    assert (line.requests, line.free) == (3, 1)
    assert (line.charged_nano, line.provider_cost_nano) == (1_500_000, 2_600_000)
    assert line.margin_nano == -1_100_000


def test_prices_below_cost():
    found = list(below_cost(BOOK))
    assert {(each.group, each.model, each.channel, each.usage_class) for each in found} == {
        ("cheap", "a", "", "input"),
        ("cheap", "a", "", "output"),
        ("cheap", "a", "special", "output"),
        ("cheap", "b", "", "input"),
    }
    assert all(each.customer_nano < each.provider_nano for each in found)


def test_other_prices_are_tried_in_the_tier_and_on_the_channel_of_each_answer():
    tiered = _model("a", input=1_000_000_000, output=5_000_000_000)
    tiered.classes["flex:input"] = 500_000_000
    other = Overrides(
        models={"a": tiered},
        channels={"special": {"a": ChannelPrice(classes={"flex:input": 100_000_000})}},
    )
    study = PriceStudy(other)
    for channel in ("main", "special"):
        event = _usage(channel=channel, input=1000)
        event.tier = "flex"
        study.add(event, BOOK)
    assert study.models["a"].then_nano == 500_000 + 100_000


def test_a_tier_that_only_the_provider_prices_is_below_cost():
    book = PriceBook(
        models={"a": _model("a", output=5, input=1)},
        multipliers_ppm={"default": 1_000_000},
        channel_costs={"one": {"a": {"priority:output": 9, "input": 1}}},
    )
    (found,) = below_cost(book)
    assert (found.channel, found.usage_class) == ("one", "priority:output")
    assert (found.customer_nano, found.provider_nano) == (5, 9)
