"""What goes in and out of `budgets`: plain records and the refusals."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from services.core.budgets import LimitState


class Granted(msgspec.Struct, frozen=True):
    """`amount_nano` of this grant; `total_nano` of the lease with it."""

    amount_nano: int
    total_nano: int
    limits: list[LimitState]


class KeyNotActive(Exception):
    """The key or its account may not spend now; nothing was granted."""


class IncarnationNotOpen(Exception):
    """The incarnation is unknown, closing, closed or lost: it must cut its streams and exit."""


class ClockOff(Exception):
    """The worker's clock and the database's are more than a second apart: it gets no grant, for
    its spend would count at the wrong time."""

    def __init__(self, off_us: int) -> None:
        super().__init__(f"this worker's clock is {off_us / 1e6:+.1f} s off the database's")
        self.off_us = off_us


class LeaseNotOpen(Exception):
    """The lease has ended, or is another's: open a new one."""


class GrantOutOfOrder(Exception):
    """`grant_no` is neither the last one nor the next one: a programmer's error."""


class LeaseReport(NamedTuple):
    """A worker's own figures of one lease: held now, spent since the lease began."""

    lease_id: str
    reserved_nano: int
    spent_nano: int


class SyncReply(msgspec.Struct, frozen=True):
    """`limits` by id, of the worker's leases that have money; `recall`: leases whose idle money
    somebody waits for, or of a limit that was lowered below what is out; `state` of the incarnation
    (anything but `open`: cut the streams and exit); `now` is the database's time. `clock_off`: so
    far off that the worker gets no grant."""

    limits: Mapping[str, LimitState]
    recall: set[str]
    state: str
    now: int
    clock_off: bool = False


class Charge(NamedTuple):
    """One or more events of a lease to settle. `lease_id` may be empty when nothing is charged;
    `occurred_at` None: now."""

    lease_id: str
    charged_nano: int
    events: int = 1
    occurred_at: int | None = None


class LeaseEnd(NamedTuple):
    """A lease_closed event: `events` of the lease exist in all, the lease_closed not counted."""

    lease_id: str
    events: int


class SettleRefused(Exception):
    """Nothing was settled. `charges` and `ends`: place in the argument -> a word for why:
    no_lease, unknown_lease, lease_closed, lease_overrun, lease_events."""

    def __init__(self, charges: dict[int, str], ends: dict[int, str]) -> None:
        super().__init__(f"charges {charges}, lease ends {ends}")
        self.charges = charges
        self.ends = ends
