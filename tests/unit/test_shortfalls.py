"""What a client is told when its request fits no budget."""

import pytest

from schemas.errors import Code
from services.core.budgets import LimitFailure, LimitState
from services.core.shortfalls import WindowFull, refusal, window_left

USD = 1_000_000_000
S = 1_000_000
NOW = 1_800_000_000 * S


def failing(kind, missing_nano=USD // 2, limit_id="", **more):
    values = {"limit_nano": 50 * USD, "settled_nano": 30 * USD, "leased_nano": 19 * USD}
    return LimitFailure(
        limit_id=limit_id or kind,
        kind=kind,
        missing_nano=missing_nano,
        only_leased=False,
        **(values | more),
    )


def test_the_first_in_the_order_of_refusal_is_told():
    kinds = ["wallet", "key_quota", "window_1d"]
    told = [refusal([failing(kind) for kind in kinds[:n]], "key_quota", NOW) for n in (1, 2, 3)]
    assert [each.code for each in told] == [
        Code.INSUFFICIENT_BALANCE,
        Code.QUOTA_EXCEEDED,
        Code.RATE_LIMIT_EXCEEDED,
    ]


def test_of_several_quotas_the_keys_own_is_told():
    both = [failing("key_quota", limit_id="a"), failing("key_quota", limit_id="own")]
    assert "the key's quota" in refusal(both, "own", NOW).message


def test_the_rest_are_told_in_the_order_of_the_page():
    """However their ids are sorted."""
    kinds = [("wallet", "a"), ("member_model", "b"), ("member_quota", "c"), ("key_quota", "own")]
    told = [
        refusal([failing(kind, limit_id=name) for kind, name in kinds[at:]], "own", NOW).message
        for at in range(4)
    ] + [refusal([failing(kind, limit_id=name) for kind, name in kinds[:3]], "own", NOW).message]
    assert all("the key's quota" in message for message in told[:4])
    assert "the member's allotment" in told[4]


@pytest.mark.parametrize(
    ("kind", "limit_id", "name"),
    [
        ("key_quota", "own", "the key's quota"),
        ("key_quota", "other", "the parent key's quota"),
        ("member_quota", "m", "the member's allotment"),
        ("member_model", "c", "the member's cap for this model"),
        ("wallet", "w", "the wallet"),
    ],
)
def test_a_quota_is_named_with_what_is_missing(kind, limit_id, name):
    told = refusal([failing(kind, limit_id=limit_id)], "own", NOW)
    code = "insufficient_balance" if kind == "wallet" else "quota_exceeded"
    assert told.message == (
        f"{code}: {name} has $1 left and this request may cost $0.5 more than that"
    )
    assert told.missing_nano == USD // 2
    assert told.retry_after_s is None


def test_a_full_window_tells_when_it_has_room():
    ends = NOW + 90 * S + 1
    told = refusal([failing("window_5h", fits_at=ends)], "own", NOW)
    assert isinstance(told, WindowFull)
    assert (told.code, told.retry_after_s) == (Code.RATE_LIMIT_EXCEEDED, 91)
    assert told.window == (50 * USD, 1 * USD, 1_800_000_091)
    assert told.message == (
        "rate_limit_5h exceeded: 49.00 / 50.00 used; resets at 2027-01-15 08:01:31 UTC; "
        "this request may cost $0.5 more than is left"
    )


def test_of_several_windows_the_one_that_has_room_last_counts():
    early, late = (
        failing("window_5h", fits_at=NOW + S),
        failing("window_7d", fits_at=NOW + 9 * S),
    )
    for order in ([early, late], [late, early]):
        assert refusal(order, "own", NOW).retry_after_s == 9
    never = failing("window_1d", fits_at=None)
    told = refusal([early, never, late], "own", NOW)
    assert told.message.startswith("rate_limit_1d")
    assert told.retry_after_s is None
    assert told.window.resets_at_s == NOW // S


def test_a_window_resets_when_the_first_spend_leaves_it():
    def state(*returns):
        return LimitState(
            limit_id="w",
            kind="window_5h",
            limit_nano=5 * USD,
            settled_nano=sum(nano for _, nano in returns),
            leased_nano=0,
            returns=returns,
        )

    told = window_left(state((NOW + 1, USD), (NOW + 50 * S, USD)), 2 * USD, NOW)
    assert told == (5 * USD, 2 * USD, NOW // S + 1)
    assert window_left(state(), 5 * USD, NOW).resets_at_s == NOW // S
