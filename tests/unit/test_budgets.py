import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.budgets import LimitState, Shortfall, grant_nano, headroom_nano, shortfall

amounts = st.integers(0, 10**12)


def state(limit, settled=0, leased=0, kind="wallet", limit_id="lim_1"):
    return LimitState(
        limit_id=limit_id, kind=kind, limit_nano=limit, settled_nano=settled, leased_nano=leased
    )


states = st.lists(st.builds(state, st.none() | amounts, amounts, amounts), max_size=5)


@given(states, amounts, amounts)
def test_a_grant_never_passes_a_limit_and_lies_between_need_and_want(rows, need, more):
    want = need + more
    failing = shortfall(rows, need)
    fits = all(
        row.limit_nano is None or row.settled_nano + row.leased_nano + need <= row.limit_nano
        for row in rows
    )
    assert fits == (not failing)
    if failing:
        with pytest.raises(Shortfall) as caught:
            grant_nano(rows, need, want)
        assert caught.value.failing == failing
        return
    granted = grant_nano(rows, need, want)
    assert need <= granted <= want
    for row in rows:
        assert (
            row.limit_nano is None or row.settled_nano + row.leased_nano + granted <= row.limit_nano
        )


@given(states, amounts)
def test_a_shortfall_names_every_limit_and_the_exact_amount(rows, need):
    for failure in shortfall(rows, need):
        row = next(
            r
            for r in rows
            if r.limit_nano is not None and headroom_nano(r) == need - failure.missing_nano
        )
        assert failure.missing_nano > 0
        enough = state(row.limit_nano + failure.missing_nano, row.settled_nano, row.leased_nano)
        assert not shortfall([enough], need)
        short = state(row.limit_nano + failure.missing_nano - 1, row.settled_nano, row.leased_nano)
        assert shortfall([short], need)


def test_grants_halve_toward_the_limit():
    limit, leased, grants = 1000, 0, []
    while True:
        try:
            grants.append(grant_nano([state(limit, leased=leased)], 10, 400))
        except Shortfall:
            break
        leased += grants[-1]
    assert grants[:5] == [400, 300, 150, 75, 37]
    assert leased <= limit
    assert limit - leased < 10


def test_without_a_limit_the_whole_wish_is_granted():
    assert grant_nano([state(None), state(None)], 1, 10**15) == 10**15
    assert grant_nano([state(None), state(100)], 1, 10**15) == 50


def test_a_shortfall_that_waiting_can_cure():
    rows = [
        state(100, settled=20, leased=70, limit_id="lim_a"),
        state(100, settled=95, limit_id="lim_b", kind="key_quota"),
        state(1000, limit_id="lim_c"),
    ]
    failing = shortfall(rows, 30)
    assert [(row.limit_id, row.missing_nano, row.only_leased) for row in failing] == [
        ("lim_a", 20, True),
        ("lim_b", 25, False),
    ]
    assert not Shortfall(failing).only_leased
    assert Shortfall(failing[:1]).only_leased


def test_a_limit_lowered_below_what_is_out_grants_nothing():
    lowered = state(50, settled=60, leased=10)
    assert headroom_nano(lowered) == -20
    with pytest.raises(Shortfall):
        grant_nano([lowered], 0, 10)


def test_a_wish_below_the_need_is_a_mistake():
    with pytest.raises(ValueError, match="no grant"):
        grant_nano([], 10, 9)
