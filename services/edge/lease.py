"""Money of one key at one worker, and what a request in flight holds of it."""

from typing import Final

from gevent.lock import BoundedSemaphore

from services.core.catalog import Key
from services.core.ids import new_id

GRANT_HOLDS_MIN: Final = 8  # a grant asks for this many holds of the present size


class Lease:
    """Money of one key at this worker, for the capped `model` or, when that is empty, for all
    others. `free = amount - spent - reserved >= 0` always."""

    __slots__ = (
        "account_id",
        "amount_nano",
        "closed",
        "events",
        "factor",
        "gate",
        "give_no",
        "giving_nano",
        "grant_no",
        "granted_s",
        "growing_nano",
        "holds",
        "id",
        "key_id",
        "limit_ids",
        "limits",
        "lock",
        "model",
        "reported",
        "reserved_nano",
        "scarce",
        "seq",
        "spent_nano",
        "unsure",
        "used_s",
    )

    def __init__(self, key: Key, model: str, now_s: float, gate: BoundedSemaphore) -> None:
        self.id = new_id("lease")
        self.gate = gate  # one for all leases of an account
        self.key_id = key.id
        self.model = model
        self.limit_ids = (*key.limit_ids, key.model_caps[model]) if model else key.limit_ids
        self.account_id = key.account_id
        self.amount_nano = 0
        self.spent_nano = 0
        self.reserved_nano = 0
        self.holds = 0  # requests in flight; they may hold nothing (a free group)
        self.seq = 0  # the last lease_seq that was handed out
        self.events = 0  # how many of them were written
        self.grant_no = 0
        self.unsure = False  # the answer to a grant was lost: the centre may know the lease
        self.give_no = 0
        self.giving_nano = 0
        self.growing_nano = 0  # what holds in flight wait for
        self.scarce = False  # another worker waits for money of one of the limits
        self.factor = GRANT_HOLDS_MIN
        self.granted_s = now_s
        self.used_s = now_s
        self.limits: set[str] = set()  # ids of those it reports on
        self.lock = BoundedSemaphore(1)
        self.reported = (0, 0)
        self.closed = False

    def next_seq(self) -> int:
        """The lease_seq of the next event."""
        self.seq += 1
        return self.seq

    @property
    def free_nano(self) -> int:
        return self.amount_nano - self.spent_nano - self.reserved_nano

    @property
    def untold_nano(self) -> int:
        """Held or spent and not reported yet; below zero when less is held than was reported."""
        return self.reserved_nano + self.spent_nano - sum(self.reported)

    @property
    def rests(self) -> bool:
        """Nothing is held, free or on its way, and all of that is reported: before it can pay for
        anything it must grow."""
        busy = self.holds or self.free_nano or self.giving_nano or self.lock.locked()
        return not busy and self.reported == (0, self.spent_nano)

    @property
    def spare_nano(self) -> int:
        """What is free and not waited for by a hold in flight: those go first."""
        return max(self.free_nano - self.growing_nano, 0)

    def fits(self, hold_nano: int) -> bool:
        """Whether a new hold can be taken now. Even a hold of nothing (a free group) needs a grant
        first: the centre counts events only of leases that it knows."""
        return self.grant_no > 0 and self.spare_nano >= hold_nano


class Reservation:
    """One request's hold on a lease; ended exactly once by `settle`."""

    __slots__ = ("ended", "hold_nano", "lease")

    def __init__(self, lease: Lease, hold_nano: int) -> None:
        self.lease = lease
        self.hold_nano = hold_nano
        self.ended = False
