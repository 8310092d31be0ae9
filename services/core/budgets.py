"""The arithmetic of limits and leases. What is `leased` at a limit is money that workers took to
admit from memory; `settled` is what was charged. `settled + leased <= limit` always holds."""

from collections.abc import Sequence
from typing import Final

import msgspec

_HOUR_US: Final = 3_600 * 1_000_000
WINDOWS_US: Final = {  # kind of limit -> length of its rolling window
    "window_5h": 5 * _HOUR_US,
    "window_1d": 24 * _HOUR_US,
    "window_7d": 168 * _HOUR_US,
}
KINDS: Final = ("wallet", "key_quota", "member_quota", "member_model", *WINDOWS_US)


class LimitState(msgspec.Struct, frozen=True, kw_only=True):
    """One limit row as the database has it. `limit_nano` None: unlimited. `pending_nano` is the
    part of `leased_nano` that is held or spent by requests, the rest lies idle in leases.

    Of a rolling window `settled_nano` is what counts now, and `returns` tells when how much of it
    counts no more: (microseconds, nano), ascending."""

    limit_id: str
    kind: str  # one of KINDS
    limit_nano: int | None
    settled_nano: int
    leased_nano: int
    pending_nano: int = 0
    returns: tuple[tuple[int, int], ...] = ()

    @property
    def is_window(self) -> bool:
        return self.kind in WINDOWS_US


class LimitFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that a grant does not fit. `only_leased`: it would fit if the money that is out in
    leases came back, so waiting can help. `fits_at`: when a window has room for it if nothing else
    is spent (microseconds), None when that is not known: no window, more than its limit, or
    money in leases."""

    limit_id: str
    kind: str
    limit_nano: int
    settled_nano: int
    leased_nano: int
    missing_nano: int
    only_leased: bool
    fits_at: int | None = None

    @property
    def is_window(self) -> bool:
        return self.kind in WINDOWS_US


class Shortfall(Exception):
    """A grant does not fit. `failing` lists every limit that it does not fit, not only one."""

    def __init__(self, failing: Sequence[LimitFailure]) -> None:
        super().__init__(", ".join(f"{row.kind} lacks {row.missing_nano}" for row in failing))
        self.failing = list(failing)

    @property
    def only_leased(self) -> bool:
        """Whether a recall of idle leases can make it fit."""
        return all(row.only_leased for row in self.failing)


def headroom_nano(state: LimitState) -> int | None:
    """What can still be leased at the limit; None for no limit. Negative after a limit was
    lowered below what is out."""
    if state.limit_nano is None:
        return None
    return state.limit_nano - state.settled_nano - state.leased_nano


def fits_at(state: LimitState, missing_nano: int) -> int | None:
    """When a window gets `missing_nano` back; None when what counts now is less than that."""
    for at, nano in state.returns:
        missing_nano -= nano
        if missing_nano <= 0:
            return at
    return None


def shortfall(states: Sequence[LimitState], need_nano: int) -> list[LimitFailure]:
    """Every limit of `states` that a grant of `need_nano` does not fit, in their order."""
    failing: list[LimitFailure] = []
    for state in states:
        room_nano = headroom_nano(state)
        if room_nano is None or state.limit_nano is None or need_nano <= room_nano:
            continue
        failing.append(
            LimitFailure(
                limit_id=state.limit_id,
                kind=state.kind,
                limit_nano=state.limit_nano,
                settled_nano=state.settled_nano,
                leased_nano=state.leased_nano,
                missing_nano=need_nano - room_nano,
                only_leased=need_nano <= state.limit_nano - state.settled_nano,
                fits_at=fits_at(state, need_nano - room_nano),
            )
        )
    return failing


def grant_nano(states: Sequence[LimitState], need_nano: int, want_nano: int) -> int:
    """How much to grant: `want_nano` while plenty is left, half of the smallest headroom when
    not, never less than `need_nano`. Halving leaves money for the other workers.

    Raises `Shortfall` with all limits that `need_nano` does not fit."""
    if need_nano < 0 or want_nano < need_nano:
        raise ValueError(f"need {need_nano} and want {want_nano} are no grant")
    failing = shortfall(states, need_nano)
    if failing:
        raise Shortfall(failing)
    rooms = [room for room in map(headroom_nano, states) if room is not None]
    share_nano = min(rooms) // 2 if rooms else want_nano
    return max(need_nano, min(want_nano, share_nano))
