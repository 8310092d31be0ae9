"""Rolling windows of spend: the law over any interval, and what a client is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core import windows
from services.core.budgets import LimitState, Shortfall, fits_at, grant_nano, shortfall

S = 1_000_000
NOW = 1_800_000_000 * S


def state(limit_nano, buckets=(), window_us=60 * S, now=NOW, leased_nano=0):
    returns = windows.returns(list(buckets), window_us, now)
    return LimitState(
        limit_id="w",
        kind="window_5h",
        limit_nano=limit_nano,
        settled_nano=sum(nano for _, nano in returns),
        leased_nano=leased_nano,
        returns=returns,
    )


def test_a_bucket_is_a_sixtieth_of_the_window_rounded_up():
    assert windows.bucket_us(5 * 3_600 * S) == 300 * S
    assert windows.bucket_us(61) == 2
    assert windows.BUCKETS * windows.bucket_us(1_000_003) >= 1_000_003


def test_spend_counts_when_it_occurred_within_its_lease_and_not_in_the_future():
    assert windows.counted_at(50, 10, 100) == 50
    assert windows.counted_at(5, 10, 100) == 10
    assert windows.counted_at(500, 10, 100) == 100


def test_a_bucket_counts_until_window_and_slack_after_its_end():
    window_us = 60 * S
    buckets = windows.added([], window_us, [(NOW, 7)], NOW)
    assert buckets == [(NOW // S, 7)]
    ends = NOW + S + window_us + windows.SLACK_US
    assert windows.returns(buckets, window_us, ends - 1) == ((ends, 7),)
    assert windows.returns(buckets, window_us, ends) == ()
    assert windows.added(buckets, window_us, [], ends) == []


def test_spends_of_one_bucket_are_one_number_and_late_ones_find_theirs():
    window_us = 60 * S
    buckets = windows.added([], window_us, [(NOW, 7), (NOW + 1, 2), (NOW + 3 * S, 5)], NOW + 9 * S)
    buckets = windows.added(buckets, window_us, [(NOW - 2 * S, 1)], NOW + 9 * S)
    assert [nano for _, nano in buckets] == [1, 9, 5]
    # What is too late to count at all is not kept.
    assert windows.added(buckets, window_us, [(NOW - 100 * S, 3)], NOW + 9 * S) == buckets


def test_a_row_keeps_its_buckets_as_text():
    assert windows.decode(windows.encode([(3, 4), (5, 6)])) == [(3, 4), (5, 6)]
    assert windows.decode(None) == windows.decode("[]") == []


def test_a_refusal_says_when_the_window_has_room():
    first, second = NOW // S, NOW // S + 10
    full = state(100, [(first, 60), (second, 30)], now=NOW + 20 * S)
    ends = [windows.counts_until(each, 60 * S) for each in (first, second)]
    assert shortfall([full], 10) == []
    (failure,) = shortfall([full], 11)
    assert (failure.missing_nano, failure.only_leased, failure.fits_at) == (1, False, ends[0])
    assert shortfall([full], 80)[0].fits_at == ends[1]
    assert shortfall([full], 101)[0].fits_at is None  # never
    assert shortfall([state(100, leased_nano=100)], 10)[0].fits_at is None
    assert fits_at(state(100), 10) is None


OFF_US = st.integers(-windows.SLACK_US, windows.SLACK_US)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "spend", "settle", "give_back"]),
        st.integers(0, 3 * S),  # time that passes before
        st.integers(1, 40),  # nano
    ),
    min_size=20,
    max_size=150,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, OFF_US, st.integers(2 * S, 20 * S), st.integers(10, 120))
def test_no_interval_of_the_windows_length_holds_more_than_its_limit(
    steps, off_us, window_us, limit_nano
):
    """A worker whose clock is `off_us` off leases, spends some time later, and its spend is
    settled any time after that."""
    now, granted_at = NOW, NOW
    leased, held, spent, buckets = 0, [], [], []
    truth = []  # (true time, nano) of all spend
    for what, passes, nano in steps:
        now += passes
        if what == "admit":
            try:
                grant_nano([state(limit_nano, buckets, window_us, now, leased)], nano, nano)
            except Shortfall:
                continue
            leased += nano
            held.append(nano)
        elif what == "spend" and held:
            used = held.pop(0)
            truth.append((now, used))
            spent.append((now + off_us, used))
        elif what == "settle" and spent:
            at, used = spent.pop(len(spent) // 2)  # batches of partitions come in any order
            counted = windows.counted_at(at, granted_at, now)
            buckets = windows.added(buckets, window_us, [(counted, used)], now)
            leased -= used
        elif what == "give_back" and held:
            leased -= held.pop()
    for start, _ in truth:
        within = sum(nano for at, nano in truth if start <= at <= start + window_us)
        assert within <= limit_nano


def test_the_law_needs_the_slack(monkeypatch):
    """Without it a clock that is behind lets spend through too early: the property can fail."""
    monkeypatch.setattr(windows, "SLACK_US", 0)
    window_us = 60 * S
    buckets = windows.added([], window_us, [(NOW - S, 10)], NOW)  # spent at NOW, told as 1 s before
    later = NOW + window_us
    assert state(10, buckets, window_us, later).settled_nano == 0
    monkeypatch.undo()
    assert state(10, buckets, window_us, later).settled_nano == 10


@pytest.mark.parametrize("off_us", [-windows.SLACK_US, 0, windows.SLACK_US])
def test_a_full_window_admits_again_and_not_forever_later(off_us):
    window_us = 6 * S
    counted = windows.counted_at(NOW + off_us, NOW - 60 * S, NOW)
    buckets = windows.added([], window_us, [(counted, 10)], NOW)
    ends = windows.counts_until(counted // windows.bucket_us(window_us), window_us)
    late = windows.bucket_us(window_us) + 2 * windows.SLACK_US
    assert window_us <= ends - NOW <= window_us + late
    assert grant_nano([state(10, buckets, window_us, ends)], 10, 10) == 10
