"""The growth of elastic holds: whatever comes when, what is held covers what may be charged."""

import json
from types import SimpleNamespace

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import Outcome
from schemas.events import Usage
from services.backends import price_files
from services.backends.clock import FakeClock
from services.core.dialects import DIALECTS
from services.core.holds import Bound, bytes_within, hold_bound, input_tokens_max, used_nano
from services.core.outcomes import Ending, judge
from services.core.prices import PriceBook
from services.core.rating import rate
from services.edge.elastic import FOREVER, ElasticHold, HoldPolicy
from tests.parts import streams

MODELS = price_files.load()
BOOK = PriceBook(models=MODELS, multipliers_ppm={"default": 1_000_000})
MODEL = {"anthropic": "claude-sonnet-4-6", "chat": "gpt-4o", "responses": "gpt-4o"}
SLICE = 2_048


def asked(dialect, *, model="", text_bytes=200, cap=16_000, **fields):
    """An exchange as far as admission takes it."""
    model = model or MODEL[dialect]
    body = {"model": model, "stream": True, "max_tokens": cap, **fields}
    said = "x" * text_bytes
    turns = [{"role": "user", "content": said}]
    body |= {"input": said} if dialect == "responses" else {"messages": turns}
    parsed = DIALECTS[dialect].parse_request(json.dumps(body).encode(), {})
    bound = hold_bound(
        BOOK,
        channels=["main"],
        priced_as=model,
        multiplier_ppm=1_000_000,
        shape=parsed.shape,
        max_output_tokens=parsed.max_output_tokens,
        n=parsed.n,
    )
    return SimpleNamespace(
        parsed=parsed,
        price=MODELS[model],
        bound=bound,
        key=SimpleNamespace(id="key_1", account_id="a", group="default"),
        view=SimpleNamespace(prices=SimpleNamespace(book=BOOK)),
        channel=SimpleNamespace(name="main"),
        reservation=None,
        tier="",
    )


class Purse:
    """Stands for the leases: gives what it has, late or at once."""

    def __init__(self, left_nano, delay_s=0.0):
        self.left_nano = left_nano
        self.delay_s = delay_s
        self.asked = 0

    def extend(self, reservation, need_nano):
        self.asked += 1
        if self.delay_s:
            gevent.sleep(self.delay_s)
        given = min(need_nano, self.left_nano)
        self.left_nano -= given
        reservation.hold_nano += given
        return given


def policy(limit_nano=1_000_000_000):
    return HoldPolicy(FakeClock(), limit_nano)


def admitted(x, purse):
    _, least = policy().first_nano(x, x.bound)
    assert least <= purse.left_nano
    purse.left_nano -= least
    x.reservation = SimpleNamespace(hold_nano=least)
    return x


def cost_if_cut(x, scan):
    verdict = judge(
        Ending.BUDGET_CUT,
        status=200,
        answer=scan,
        streaming=True,
        relayed=True,
        text_bytes=x.parsed.shape.text_bytes,
    )
    if not verdict.billed:
        return 0
    return rate(
        BOOK, channel="main", priced_as=x.price.model, group="default", usage=verdict.usage
    ).cost_nano


MAKE = {
    "anthropic": (streams.message_start(usage={"input_tokens": 9}), streams.text_delta),
    "chat": (b"", lambda text: streams.chat_chunk({"content": text})),
    "responses": (
        b"",
        lambda text: streams.named("response.output_text.delta", delta=text, sequence_number=1),
    ),
}


@pytest.mark.parametrize("dialect", list(MAKE))
@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 3_000) | st.just(16), min_size=1, max_size=120),
    spare_tokens=st.integers(0, 12_000),
    text_bytes=st.integers(20, 50_000),
    late=st.booleans(),
)
def test_held_covers_what_may_be_charged(dialect, sizes, spare_tokens, text_bytes, late):
    """Event by event, with any sizes and any wealth; a look happens only when `room` is gone."""
    x = asked(dialect, text_bytes=text_bytes)
    wealth = x.bound.input_nano + x.bound.tokens_nano(SLICE + spare_tokens)
    purse = Purse(wealth, 0.0001 if late else 0)
    admitted(x, purse)
    scan = DIALECTS[dialect].scan(x.parsed)
    hold = ElasticHold(x, scan, purse)
    room = hold.first_room
    start, piece = MAKE[dialect]
    for event in [start, *(piece("y" * size) for size in sizes)]:
        scan.feed(event)
        room -= len(event)
        if room < 0:
            room = hold.room()
            if hold.used_up:
                break
        assert cost_if_cut(x, scan) <= x.reservation.hold_nano <= wealth
    if hold.used_up:
        gevent.sleep(0.001)
        assert purse.left_nano == 0  # it ended for want of money and of nothing else


@given(
    nano=st.integers(0, 10**12),
    seen=st.integers(0, 10**6),
    more=st.integers(0, 10**7),
    price=st.integers(1, 10**9),
    tokens=st.integers(1, 10**6),
)
def test_what_fits_into_the_room_never_uses_more(nano, seen, more, price, tokens):
    bound = Bound(1000, price * tokens // 1000 + 1, tokens)
    more = min(more, bytes_within(bound, nano))
    before = used_nano(bound, output_bytes=seen)
    assert used_nano(bound, output_bytes=seen + more) <= before + nano


def test_a_stream_asks_for_the_next_slice_at_half_of_the_present_one():
    x = asked("chat")
    purse = Purse(10 * x.bound.whole_nano)
    admitted(x, purse)
    scan = DIALECTS["chat"].scan(x.parsed)
    hold = ElasticHold(x, scan, purse)
    before = x.reservation.hold_nano
    scan.feed(streams.chat_chunk({"content": "y" * (SLICE - 100)}))  # under half: 2 bytes a token
    hold.room()
    assert not purse.asked
    scan.feed(streams.chat_chunk({"content": "y" * 200}))
    hold.room()
    gevent.sleep(0)
    assert x.reservation.hold_nano == before + x.bound.tokens_nano(SLICE)
    assert not hold.used_up


def test_once_the_whole_bound_is_held_nobody_looks_again():
    x = asked("chat", cap=SLICE)
    admitted(x, Purse(x.bound.whole_nano))
    assert ElasticHold(x, None, None).first_room == FOREVER


def test_the_input_as_told_frees_what_its_bound_held_too_much():
    x = asked("anthropic", text_bytes=40_000)  # at most 20,000 tokens
    admitted(x, Purse(10 * x.bound.whole_nano))
    scan = DIALECTS["anthropic"].scan(x.parsed)
    scan.feed(streams.message_start(usage={"input_tokens": 1_000, "output_tokens": 1}))
    hold = ElasticHold(x, scan, Purse(0))
    freed = x.bound.input_nano - 1_000 * 3_000
    held = x.bound.tokens_nano(SLICE - 1)
    assert hold.room() == pytest.approx(bytes_within(x.bound, freed + held), abs=2)


@pytest.mark.parametrize(
    ("dialect", "change"),
    [
        ("anthropic", {"stream": False}),
        ("chat", {"n": 2}),
        ("anthropic", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("responses", {"model": "gpt-5-mini"}),  # hides its reasoning
    ],
)
def test_what_does_not_show_its_output_holds_the_whole_bound(dialect, change):
    x = asked(dialect, **change)
    assert policy().first_nano(x, x.bound) == (x.bound.whole_nano,) * 2
    plain = asked(dialect)
    assert policy().first_nano(plain, plain.bound)[0] < plain.bound.whole_nano


def ended(*, written_off_nano=0, output=0):
    return Usage(
        event_id="e",
        account_id="a",
        key_id="key_1",
        occurred_at=1,
        source="edge",
        status=200,
        outcome=Outcome.COMPLETED,
        stream=True,
        priced_as="gpt-4o",
        usage={"output": output},
        multiplier_ppm=1_000_000,
        cost_nano=written_off_nano,
        charged_nano=0,
        written_off_nano=written_off_nano,
    )


def test_a_key_that_costs_us_holds_whole_bounds_for_the_rest_of_the_day():
    clock = FakeClock()
    made = HoldPolicy(clock, 1_000)
    x = asked("chat")
    made.ended(ended(written_off_nano=1_000))
    assert made.first_nano(x, x.bound)[0] < x.bound.whole_nano
    made.ended(ended(written_off_nano=1))
    assert made.first_nano(x, x.bound) == (x.bound.whole_nano,) * 2
    assert input_tokens_max(x.price, made.shape(x)) == x.price.context_window
    clock.sleep(86_400)
    assert made.shape(x) == x.parsed.shape
    assert made.first_nano(x, x.bound)[0] < x.bound.whole_nano


def test_the_first_slice_is_as_large_as_answers_of_the_account_usually_are():
    made = policy()
    x = asked("chat")
    least = x.bound.input_nano + x.bound.tokens_nano(SLICE)
    assert made.first_nano(x, x.bound) == (least, least)
    made.ended(ended(output=3_000))
    assert made.first_nano(x, x.bound) == (x.bound.input_nano + x.bound.tokens_nano(6_000), least)
    for _ in range(20):
        made.ended(ended(output=10))
    assert made.first_nano(x, x.bound) == (least, least)


def test_half_a_dollar_admits_a_large_coding_request():
    """76 KB of prompt and tools, up to 64,000 tokens of answer."""
    x = asked("anthropic", model="claude-sonnet-4-5", text_bytes=76_000, cap=64_000)
    assert x.bound.whole_nano > 1_000_000_000
    assert policy().first_nano(x, x.bound)[1] < 500_000_000
