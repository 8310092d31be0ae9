import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import (
    MOVEMENTS,
    Audit,
    Error,
    IncarnationClosed,
    LeaseClosed,
    Request,
    Usage,
    WalletMovement,
)
from services.core.ledger import postings_for, wallet

nano = st.integers(0, 10**15)
ENVELOPE = {"event_id": "e", "account_id": "acct_1", "occurred_at": 1, "source": "edge"}


def usage(charged, written_off, provider):
    return Usage(
        **ENVELOPE,
        status=200,
        outcome="completed",
        channel="c",
        usage={},
        multiplier_ppm=1,
        cost_nano=charged + written_off,
        charged_nano=charged,
        written_off_nano=written_off,
        provider_cost_nano=provider,
    )


def error(provider):
    return Error(
        **ENVELOPE,
        status=502,
        outcome="failed",
        code="upstream_error",
        stage="upstream",
        channel="c",
        provider_cost_nano=provider,
    )


def movement(amount, kind="topup"):
    return WalletMovement(**ENVELOPE, movement_id="mov_1", movement=kind, amount_nano=amount)


events = (
    st.builds(usage, nano, nano, nano)
    | st.builds(error, nano)
    | st.builds(movement, st.integers(-(10**15), 10**15), st.sampled_from(MOVEMENTS))
)


@given(events, st.booleans())
def test_postings_always_add_up_to_zero(event, customer_pays):
    postings = postings_for(event, customer_pays=customer_pays)
    assert sum(posting.amount_nano for posting in postings) == 0
    assert all(posting.amount_nano for posting in postings)
    assert len({posting.account for posting in postings}) == len(postings)


@given(st.lists(events, max_size=30))
def test_the_wallet_is_what_came_in_minus_what_was_charged(history):
    balance = sum(
        posting.amount_nano
        for event in history
        for posting in postings_for(event)
        if posting.account == wallet("acct_1")
    )
    came_in = sum(event.amount_nano for event in history if isinstance(event, WalletMovement))
    charged = sum(event.charged_nano for event in history if isinstance(event, Usage))
    assert balance == came_in - charged


def test_a_charge_with_a_written_off_part():
    assert dict(postings_for(usage(70, 30, 40))) == {
        "wallet:acct_1": -70,
        "writeoff": -30,
        "revenue": 100,
        "provider_cost": -40,
        "provider:c": 40,
    }


@given(nano, nano, nano)
def test_a_lost_lease_never_touches_the_wallet(charged, written_off, provider):
    postings = dict(postings_for(usage(charged, written_off, provider), customer_pays=False))
    assert "wallet:acct_1" not in postings
    assert postings.get("loss", 0) == -charged


def test_a_failure_is_our_loss_and_a_movement_comes_from_outside():
    assert dict(postings_for(error(5))) == {"loss": -5, "provider:c": 5}
    assert postings_for(error(0)) == ()
    assert dict(postings_for(movement(9))) == {"wallet:acct_1": 9, "external:topup": -9}


@pytest.mark.parametrize(
    "event",
    [
        Request(
            **ENVELOPE,
            dialect="chat",
            path="/",
            model="m",
            group="g",
            price_version="p",
            hold_nano=5,
        ),
        LeaseClosed(**ENVELOPE, events=1),
        IncarnationClosed(**ENVELOPE),
        Audit(**ENVELOPE, action="a", actor="b", subject="c"),
    ],
)
def test_other_events_move_no_money(event):
    assert postings_for(event) == ()
