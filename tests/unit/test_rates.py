"""The arithmetic of rates: no interval of a minute holds more than the limit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.rates import (
    BUCKETS,
    MINUTE_US,
    Centre,
    Kind,
    Line,
    Window,
    in_advance,
    is_small,
)

WIDTH_US = MINUTE_US // BUCKETS
STARTS = st.lists(
    st.tuples(
        st.integers(0, 20_000_000),  # since the ask before
        st.integers(1, 4),  # asked for
        st.floats(0, 1),  # how much of what was got is given back
        st.floats(0, 1, exclude_max=True),  # when within its validity the rest begins
    ),
    max_size=60,
)


def most_in_a_minute(times):
    """The largest number of `times` in any interval of a minute, whose end is left out."""
    return max((sum(begin <= t < begin + MINUTE_US for t in times) for begin in times), default=0)


@settings(max_examples=300)
@given(limit=st.integers(1, 12), asks=STARTS, begin_us=st.integers(0, 10**16))
def test_no_minute_holds_more_starts_than_the_limit(limit, asks, begin_us):
    """Whatever is taken in advance and begins late, and whatever of it is given back."""
    window, now_us, begun, unused = Window({}), begin_us, [], []
    for pause_us, wanted, part_back, late in asks:
        now_us += pause_us
        for bucket, n in unused:
            window.take_back(bucket, n)
        unused = []
        n = min(wanted, limit - window.total(now_us))
        if n <= 0:
            continue
        bucket = window.add(now_us, n)
        end_us = window.end_us(bucket)
        assert now_us + WIDTH_US <= end_us <= now_us + 2 * WIDTH_US
        back = int(n * part_back)
        unused.append((bucket, back))
        begun += [now_us + int((end_us - 1 - now_us) * late)] * (n - back)
        window = Window(window.counts(now_us))  # as it is stored
    assert most_in_a_minute(begun) <= limit


@given(limit=st.integers(1, 500), seed_us=st.integers(0, 10**16))
def test_the_limit_can_be_used_each_minute_but_for_a_second(limit, seed_us):
    window = Window({})
    window.add(seed_us, limit)
    assert window.total(seed_us + MINUTE_US - 1) == limit
    assert window.total(seed_us + MINUTE_US + 2 * WIDTH_US) == 0


@given(
    st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 5)), min_size=1, max_size=30),
    st.data(),
)
def test_after_the_wait_there_is_room_and_not_before(adds, data):
    window, now_us = Window({}), 10**15
    for pause_us, n in adds:
        now_us += pause_us
        window.add(now_us, n)
    over = data.draw(st.integers(1, window.total(now_us)))
    wait_us = window.wait_us(now_us, over)
    assert window.total(now_us + wait_us) <= window.total(now_us) - over
    assert window.total(now_us + wait_us - 1) > window.total(now_us) - over


def test_more_than_there_is_waits_a_minute():
    assert Window({}).wait_us(0, 1) == MINUTE_US


def lines_and_asks(draw):
    subjects = ["acct_a", "key_b", "mem_c"]
    lines = [
        Line(
            subject,
            kind,
            draw(st.integers(1, 8)),
            keep=draw(st.integers(0, 10)) if kind is Kind.CONCURRENCY else 0,
            want=draw(st.integers(0, 5)),
        )
        for subject in subjects
        for kind in (Kind.CONCURRENCY, Kind.REQUESTS)
        if draw(st.booleans())
    ]
    places = st.lists(st.sampled_from(range(len(lines))), min_size=1, unique=True)
    asks = draw(st.lists(places, max_size=12)) if lines else []
    return lines, asks


@given(st.data())
def test_a_round_passes_no_limit_and_grants_whole_asks_only(data):
    lines, asks = data.draw(st.composite(lambda draw: lines_and_asks(draw))())
    centre = Centre(10**15)
    centre.windows = {line.subject: Window({}) for line in lines}
    before = {}
    for line in lines:
        if line.kind is Kind.REQUESTS:
            before[line.subject] = data.draw(st.integers(0, line.limit + 2))
            centre.windows[line.subject].add(centre.now_us, before[line.subject])
        else:
            centre.others[line.subject] = data.draw(st.integers(0, line.limit + 2))
    ruling = centre.rule(lines, asks)
    granted = [0] * len(lines)
    for ask, failing in zip(asks, ruling.failing, strict=True):
        for at in ask if not failing else ():
            granted[at] += 1
        for each in failing:
            assert each.line in ask
            assert each.used >= lines[each.line].limit
            assert (each.wait_us > 0) == (lines[each.line].kind is Kind.REQUESTS)
    for at, line in enumerate(lines):
        taken = ruling.taken[at]
        assert granted[at] <= taken.n <= granted[at] + line.want
        if line.kind is Kind.CONCURRENCY:
            assert taken.used == centre.others[line.subject] + line.keep + taken.n
        else:
            assert taken.used == before[line.subject] + taken.n
            assert centre.windows[line.subject].total(centre.now_us) == taken.used
        if taken.n:
            assert taken.used <= line.limit


def test_what_fits_is_granted():
    centre = Centre(10**15)
    centre.windows = {"key_a": Window({})}
    lines = [Line("key_a", Kind.CONCURRENCY, 3, keep=1), Line("key_a", Kind.REQUESTS, 2)]
    ruling = centre.rule(lines, [[0, 1], [0], [0], [1]])
    assert [len(failing) for failing in ruling.failing] == [0, 0, 1, 0]
    assert [taken.n for taken in ruling.taken] == [2, 2]


def test_in_advance_is_half_of_the_rest_at_most():
    centre = Centre(10**15)
    line = Line("acct_a", Kind.CONCURRENCY, 100, keep=90, want=50)
    assert centre.rule([line], [[0]]).taken[0].n == 1 + 4


def test_starts_given_back_are_free_again():
    centre = Centre(10**15)
    centre.windows = {"key_a": Window({})}
    bucket = centre.windows["key_a"].add(centre.now_us, 5)
    line = Line("key_a", Kind.REQUESTS, 5, back=3, bucket=bucket)
    assert centre.rule([line], [[0]] * 4).failing[3]
    assert centre.windows["key_a"].total(centre.now_us) == 5


@pytest.mark.parametrize("kind", [Kind.CONCURRENCY, Kind.REQUESTS])
def test_small_limits_take_nothing_in_advance(kind):
    for limit in range(1, 10_000):
        advance = in_advance(kind, limit)
        assert (advance == 0) == is_small(kind, limit)
        assert advance <= limit // 16
