"""Whatever a provider tells: what is charged is within the hold and what the limits still had, the
rest is reported as written off, and the meter finds the same money in the event alone."""

import json
from types import SimpleNamespace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Usage, decode, encode
from services.backends import price_files
from services.backends.clock import FakeClock
from services.core.dialects import DIALECTS
from services.core.dialects.base import ResponseFacts
from services.core.holds import hold_bound
from services.core.outcomes import Ending
from services.core.prices import PriceBook, PriceVersion
from services.edge.elastic import HoldPolicy
from services.edge.exchange import Exchange
from services.edge.record import Recorder
from services.meter.rerate import Rerate

OWN = {"own": {"gpt-5-4": {"output": 9 * 10**9, "flex:output": 10**9, "long:input": 10**10}}}
BOOK = PriceBook(
    models=price_files.load(),
    multipliers_ppm={"default": 1_000_000, "cheap": 800_000, "dear": 5_000_000},
    channels=OWN,
    channel_costs={"own": {"gpt-5-4": {"output": 10**9}}},
)
VERSION = PriceVersion(id=BOOK.version_id(), effective_at=0, book=BOOK)


class Leases:
    """A lease with `spare_nano` beside the hold, and limits with `left_nano` beyond the lease."""

    def __init__(self, spare_nano):
        self.spare_nano = spare_nano
        self.settled = []

    def charge(self, reservation, cost_nano):
        taken = min(max(cost_nano - reservation.hold_nano, 0), self.spare_nano)
        reservation.hold_nano += taken
        return min(cost_nano, reservation.hold_nano)

    def settle(self, reservation, charged_nano):
        assert 0 <= charged_nano <= reservation.hold_nano
        self.settled.append(charged_nano)


class Journal:
    def __init__(self):
        self.events = []

    def append_last(self, event):
        self.events.append(event)


def exchange(tier_asked, group, channel, version=VERSION):
    dialect = DIALECTS["chat"]
    body = {"model": "gpt-5-4", "max_tokens": 1_000, "service_tier": tier_asked}
    body["messages"] = [{"role": "user", "content": "x" * 400}]
    environ = {"PATH_INFO": dialect.path}
    x = Exchange("0199f000-0000-7000-8000-000000000001", dialect, environ, {}, 0.0, 0)
    x.parsed = dialect.parse_request(json.dumps(body).encode(), {})
    x.key = SimpleNamespace(id="key_1", account_id="a", group=group)
    x.price = BOOK.models["gpt-5-4"]
    x.view = SimpleNamespace(prices=version)
    x.channel = SimpleNamespace(name=channel)
    x.bound = hold_bound(
        BOOK,
        channels=["main", "own"],
        priced_as="gpt-5-4",
        multiplier_ppm=BOOK.multipliers_ppm[group],
        shape=x.parsed.shape,
        max_output_tokens=1_000,
        tier=x.parsed.tier,
    )
    x.upstream_status, x.requested = 200, True
    lease = SimpleNamespace(id="lease_1", events=0, next_seq=lambda: 1)
    x.reservation = SimpleNamespace(hold_nano=x.bound.whole_nano, lease=lease)
    return x


def recorder_over(journal, leases):
    clock = FakeClock()
    counters = SimpleNamespace(add=lambda *a, **k: None, observe=lambda *a, **k: None)
    recorder = Recorder(journal, clock, counters, HoldPolicy(clock, 10**9))
    recorder.leases = leases
    return recorder


units = st.dictionaries(
    st.sampled_from(["input", "cache_read", "cache_write_5m", "output", "web_search", "reasoning"]),
    st.integers(0, 400_000),
    min_size=1,
)


@settings(deadline=None)
@given(
    usage=st.none() | units,
    asked=st.sampled_from(["flex", "priority", "default", "auto", "unheard_of"]),
    told=st.sampled_from([None, "", "flex", "priority", "batch"]),
    group=st.sampled_from(sorted(BOOK.multipliers_ppm)),
    channel=st.sampled_from(["main", "own"]),
    spare_nano=st.integers(0, 10**10),
    output_bytes=st.integers(0, 10**7),
)
def test_charged_is_what_was_held_or_there_and_the_rest_is_reported(
    usage, asked, told, group, channel, spare_nano, output_bytes
):
    x = exchange(asked, group, channel)
    held_nano, leases, journal = x.reservation.hold_nano, Leases(spare_nano), Journal()
    recorder = recorder_over(journal, leases)
    x.answer = ResponseFacts(
        usage=usage,
        finished=True,
        finish_reason="stop",
        has_content=True,
        output_bytes=output_bytes,
        tier=told,
    )
    verdict = recorder.end(x, Ending.ANSWERED, 200)
    assert verdict is not None
    (event,) = journal.events
    event = decode(encode(event))
    assert isinstance(event, Usage)
    assert leases.settled == [event.charged_nano]
    assert event.charged_nano + event.written_off_nano == event.cost_nano
    assert event.charged_nano <= held_nano + spare_nano
    if event.cost_nano <= held_nano:
        assert event.written_off_nano == 0
    if event.estimated:
        assert event.charged_nano <= held_nano, "an estimate takes nothing beyond the hold"
    wanted = told if told is not None else asked if asked not in ("default", "auto") else ""
    assert event.tier == wanted
    Rerate(lambda version: VERSION if version == VERSION.id else None).check(event)


def test_searches_that_the_operators_prices_do_not_name_make_nothing_else_free():
    model = BOOK.models["gpt-5-4"]
    classes = {name: price for name, price in model.classes.items() if "web_search" not in name}
    models = {**BOOK.models, model.model: msgspec.structs.replace(model, classes=classes)}
    book = msgspec.structs.replace(BOOK, models=models)
    version = PriceVersion(id=book.version_id(), effective_at=0, book=book)
    x, journal = exchange("default", "default", "main", version), Journal()
    x.answer = ResponseFacts(
        usage={"input": 100, "output": 10, "web_search": 2}, finished=True, has_content=True
    )
    verdict = recorder_over(journal, Leases(0)).end(x, Ending.ANSWERED, 200)
    assert verdict is not None
    assert verdict.billed
    (event,) = journal.events
    assert event.usage == {"input": 100, "output": 10}
    assert event.charged_nano == (100 * classes["input"] + 10 * classes["output"]) // 10**6
    Rerate(lambda _: version).check(event)
