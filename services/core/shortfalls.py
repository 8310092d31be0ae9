"""What the client is told when its request fits no budget: a spend window 429 until it has room,
quotas, allotments and caps 402, the wallet 402, in this order (product surface, section 4)."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from schemas.errors import Code
from services.core.budgets import LimitFailure, LimitState
from services.core.errors import Refusal
from services.core.money import exact_usd

_US: Final = 1_000_000
_NANO_PER_CENT: Final = 10_000_000
_ORDER: Final = ("key_quota", "member_quota", "member_model", "wallet")
_QUOTAS: Final = {
    "member_quota": "the member's allotment",
    "member_model": "the member's cap for this model",
}


class WindowLeft(NamedTuple):
    """A spend window as the X-RateLimit headers tell it; `resets_at_s` in unix seconds."""

    limit_nano: int
    left_nano: int
    resets_at_s: int


class WindowFull(Refusal):
    """A spend window has no room for the request: `window` as it stands."""

    def __init__(self, message: str, failure: LimitFailure, now_us: int) -> None:
        ends_us = failure.fits_at
        super().__init__(
            Code.RATE_LIMIT_EXCEEDED,
            message,
            missing_nano=failure.missing_nano,
            retry_after_s=None if ends_us is None else max(1, -((now_us - ends_us) // _US)),
        )
        self.window = WindowLeft(
            failure.limit_nano, _left_nano(failure), -(-(ends_us or now_us) // _US)
        )


def refusal(failing: Sequence[LimitFailure], quota_limit_id: str, now_us: int) -> Refusal:
    """For a hold that does not fit `failing`. `quota_limit_id` is the key's own quota: another
    one is its parent's. Of several windows the one that has room last counts; of the rest the first
    of the key's quota, its parent's, the allotment, the model's cap, the wallet."""
    windows = [each for each in failing if each.is_window]
    if windows:
        last = max(windows, key=lambda each: (each.fits_at is None, each.fits_at or 0))
        return WindowFull(_window_message(last), last, now_us)
    first = min(
        failing, key=lambda each: (_ORDER.index(each.kind), each.limit_id != quota_limit_id)
    )
    code = Code.INSUFFICIENT_BALANCE if first.kind == "wallet" else Code.QUOTA_EXCEEDED
    message = (
        f"{code}: {_name(first, quota_limit_id)} has ${exact_usd(_left_nano(first))} left and "
        f"this request may cost ${exact_usd(first.missing_nano)} more than that"
    )
    return Refusal(code, message, missing_nano=first.missing_nano)


def window_left(state: LimitState, remaining_nano: int, now_us: int) -> WindowLeft:
    """The window with what this worker knows to be left of it. It resets when the first of what
    counts now counts no more; at once when nothing counts."""
    assert state.limit_nano is not None
    resets_us = state.returns[0][0] if state.returns else now_us
    return WindowLeft(state.limit_nano, remaining_nano, -(-resets_us // _US))


def _window_message(failure: LimitFailure) -> str:
    name = failure.kind.replace("window", "rate_limit")
    used_nano = failure.settled_nano + failure.leased_nano
    used = f"{name} exceeded: {_cents(used_nano)} / {_cents(failure.limit_nano)} used"
    if failure.fits_at is None:
        return f"{used}; this request may cost ${exact_usd(failure.missing_nano)} more than is left"
    ends = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(-(-failure.fits_at // _US)))
    return (
        f"{used}; resets at {ends} UTC; this request may cost "
        f"${exact_usd(failure.missing_nano)} more than is left"
    )


def _name(failure: LimitFailure, quota_limit_id: str) -> str:
    if failure.kind == "wallet":
        return "the wallet"
    if failure.kind == "key_quota":
        own = failure.limit_id == quota_limit_id
        return "the key's quota" if own else "the parent key's quota"
    return _QUOTAS[failure.kind]


def _left_nano(failure: LimitFailure) -> int:
    return max(failure.limit_nano - failure.settled_nano - failure.leased_nano, 0)


def _cents(nano: int) -> str:
    cents = -(-nano // _NANO_PER_CENT)
    return f"{cents // 100}.{cents % 100:02d}"
