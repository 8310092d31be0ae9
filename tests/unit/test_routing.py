from collections import Counter

import pytest

from services.backends import price_files
from services.backends.clock import FakeClock
from services.core.catalog import Channel, Group, Snapshot
from services.core.prices import PriceBook, PriceVersion
from services.core.routing import Cooldowns, ModelIndex, candidates, normalized

BOOK = PriceBook(models=price_files.load(), multipliers_ppm={"default": 1_000_000})


def channel(name, *, dialect="anthropic", models=("m",), groups=("default",), priority=0, weight=1):
    return Channel(
        name=name,
        dialect=dialect,
        base_url="http://127.0.0.1:1",
        credential="",
        models={model: model for model in models},
        groups=groups,
        priority=priority,
        weight=weight,
    )


def snapshot(*channels):
    return Snapshot(
        version=1,
        accounts={},
        keys={},
        groups={"default": Group(name="default", multiplier_ppm=1_000_000)},
        channels=channels,
        prices=PriceVersion(id="pv", effective_at=0, book=BOOK),
    )


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("claude-haiku-4-5", "claude-haiku-4-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-haiku-4.5", "claude-haiku-4-5"),
        ("claude-sonnet-4-6[1m]", "claude-sonnet-4-6"),
        ("claude-sonnet-4-5-20250929[1m]", "claude-sonnet-4-5"),
        ("claude-opus-4-20250514", "claude-opus-4-0"),
        ("claude-sonnet-4-6-latest", "claude-sonnet-4-6"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-5.5", "gpt-5-5"),
        ("gpt-5-4-mini", "gpt-5-4-mini"),
        ("gemini-3.1-pro", "gemini-3-1-pro"),
        ("minimax-m2-5", "minimax-m2.5"),
        ("deepseek-chat", "deepseek-v4-flash"),
        ("gpt-daybreak-blue-latest", "gpt-daybreak-blue-latest"),
    ],
)
def test_names_that_mean_a_model(asked, model):
    assert ModelIndex(BOOK).resolve(asked).model == model


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "claude",
        "Claude-Haiku-4-5",
        "claude-haiku-4-5-2025",
        "gpt-5-5x",
        "claude-haiku-4-5-preview",
        "-20251001",
        "x" * 10_000,
    ],
)
def test_names_that_mean_none(asked):
    assert ModelIndex(BOOK).resolve(asked) is None


def test_an_id_is_never_hidden_by_a_normal_form():
    index = ModelIndex(BOOK)
    for name in BOOK.models:
        assert index.resolve(name).model == name
        assert index.resolve(normalized(name)).model == name


def test_candidates_fit_dialect_model_and_group():
    shown = snapshot(
        channel("other-dialect", dialect="chat"),
        channel("other-model", models=("x",)),
        channel("other-group", groups=("vip",)),
        channel("fits"),
    )
    assert [found.name for found in candidates(shown, "default", "anthropic", "m", "s")] == ["fits"]
    assert candidates(shown, "nobody", "anthropic", "m", "s") == []


def test_priority_first_then_a_session_stays():
    shown = snapshot(channel("a"), channel("b"), channel("c"), channel("first", priority=5))
    orders = [
        [c.name for c in candidates(shown, "default", "anthropic", "m", f"s{n}")] for n in range(50)
    ]
    assert all(order[0] == "first" for order in orders)
    again = [
        [c.name for c in candidates(shown, "default", "anthropic", "m", f"s{n}")] for n in range(50)
    ]
    assert orders == again
    assert {order[1] for order in orders} == {"a", "b", "c"}


def test_a_channel_that_leaves_moves_only_its_own_sessions():
    three = snapshot(channel("a"), channel("b"), channel("c"))
    two = snapshot(channel("a"), channel("b"))
    for n in range(200):
        before = candidates(three, "default", "anthropic", "m", f"s{n}")[0].name
        after = candidates(two, "default", "anthropic", "m", f"s{n}")[0].name
        assert before in ("c", after)


@pytest.mark.parametrize("session", ["s{n}", ""])
def test_weight_is_the_share_of_sessions(session):
    shown = snapshot(channel("light", weight=1), channel("heavy", weight=4))
    first = Counter(
        candidates(shown, "default", "anthropic", "m", session.format(n=n))[0].name
        for n in range(3000)
    )
    assert 3.2 < first["heavy"] / first["light"] < 5.0


def test_one_or_two_failures_do_not_rest_a_channel_and_a_success_forgets_them():
    clock = FakeClock()
    rests = Cooldowns(clock.monotonic_s)
    for _ in range(5):
        rests.failed("a", 500, None)
        rests.failed("a", 0, None)
        assert rests.ready("a")
        rests.ok("a")
    for _ in range(3):
        rests.failed("a", 503, None)
    assert not rests.ready("a")
    assert rests.ready("b")
    assert rests.known_end_s(["a"]) is None
    clock.advance(1.0)
    assert rests.ready("a")


def test_rests_grow_to_their_bound():
    clock = FakeClock()
    rests = Cooldowns(clock.monotonic_s)
    lengths = []
    for _ in range(12):
        rests.failed("a", 500, None)
        waited = 0
        while not rests.ready("a"):
            clock.advance(0.5)
            waited += 0.5
        lengths.append(waited)
    assert lengths[:6] == [0, 0, 1, 2, 4, 8]
    assert max(lengths) == 30


def test_retry_after_is_a_known_end():
    clock = FakeClock()
    rests = Cooldowns(clock.monotonic_s)
    rests.failed("a", 429, 20)
    rests.failed("b", 529, 5)
    assert not rests.ready("a")
    assert rests.known_end_s(["a", "b"]) == 5
    assert rests.known_end_s(["a", "c"]) is None
    rests.failed("a", 500, None)  # a call that was already on its way
    assert rests.known_end_s(["a"]) == 20
    clock.advance(20)
    assert rests.ready("a")
    assert rests.known_end_s(["a"]) is None
    assert rests.known_end_s([]) is None


def test_a_429_without_an_end_rests_a_second_and_an_end_is_bounded():
    clock = FakeClock()
    rests = Cooldowns(clock.monotonic_s)
    rests.failed("a", 429, None)
    assert not rests.ready("a")
    clock.advance(1)
    assert rests.ready("a")
    rests.failed("b", 429, 1e9)
    assert rests.known_end_s(["b"]) == Cooldowns.TOLD_MAX_S


def test_a_refused_credential_parks_the_channel():
    clock = FakeClock()
    rests = Cooldowns(clock.monotonic_s)
    rests.park("a")
    clock.advance(59)
    assert not rests.ready("a")
    assert rests.known_end_s(["a"]) is None
    clock.advance(1)
    assert rests.ready("a")
