"""Leases: money a worker took from a key's budget, so that it admits a request from memory.

One lease per key and worker, grown by grants. Check and take happen without a switch in between;
SQL runs in one thread (`sql`), one grant in flight per key. What is idle goes back; what another
worker recalls goes back at once.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import gevent
import msgspec
from gevent.lock import BoundedSemaphore

from schemas.errors import Code
from services.backends.clock import Clock
from services.backends.outbox import Sealed
from services.backends.sql.budgets import Budgets
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.lease_records import (
    ClockOff,
    IncarnationNotOpen,
    KeyNotActive,
    LeaseReport,
)
from services.core.budgets import LimitFailure, LimitState, Shortfall
from services.core.catalog import Key
from services.core.errors import Refusal
from services.core.ids import new_id
from services.core.money import exact_usd
from services.edge.counters import Counters

T = TypeVar("T")

IDLE_RETURN_S = 2.0
IDLE_CLOSE_S = 60.0
RETRY_S = 0.05
GRANT_HOLDS_MIN = 8
GRANT_HOLDS_MAX = 512
LIMIT_AGE_S = 1.0  # figures of a limit that no lease here reports on are read again after this
LIMITS_KEPT = 10_000
SHORT_MAX = 10_000
WANT_MAX_NANO = 1_000_000_000_000  # a worker never asks for more than $1,000 at once
_GRANTS = "tollgate_lease_grants_total"


class Threads(Protocol):
    """Runs a blocking call in a thread and waits for it without stopping the hub."""

    def apply(self, fn: Callable[..., T], args: tuple[Any, ...] = ()) -> T: ...


class Lease:
    """Money of one key at this worker. `free = amount - spent - reserved >= 0` always."""

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
        "id",
        "key_id",
        "limit_ids",
        "limits",
        "lock",
        "reported",
        "reserved_nano",
        "scarce",
        "seq",
        "spent_nano",
        "used_s",
    )

    def __init__(self, key: Key, now_s: float, gate: BoundedSemaphore) -> None:
        self.id = new_id("lease")
        self.gate = gate  # one for all leases of an account
        self.key_id = key.id
        self.limit_ids = key.limit_ids
        self.account_id = key.account_id
        self.amount_nano = 0
        self.spent_nano = 0
        self.reserved_nano = 0
        self.seq = 0  # the last lease_seq that was handed out
        self.events = 0  # how many of them were written
        self.grant_no = 0
        self.give_no = 0
        self.giving_nano = 0
        self.growing_nano = 0  # what holds in flight wait for
        self.scarce = False  # another worker waits for money of one of the limits
        self.factor = GRANT_HOLDS_MIN
        self.granted_s = now_s
        self.used_s = now_s
        self.limits: dict[str, LimitState] = {}
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


class LeaseBook:
    """Every lease of one worker.

    `on_closed(lease)` is called when a lease ends for good, to write its `lease_closed`."""

    def __init__(
        self,
        budgets: Budgets,
        incarnation: str,
        threads: Threads,
        clock: Clock,
        counters: Counters,
        *,
        wait_s: float,
        on_closed: Callable[[Lease], None],
    ) -> None:
        self._budgets = budgets
        self._incarnation = incarnation
        self._threads = threads
        self._clock = clock
        self._counters = counters
        self._wait_s = wait_s
        self._on_closed = on_closed
        self._leases: dict[str, Lease] = {}
        self._gates: WeakValueDictionary[str, BoundedSemaphore] = WeakValueDictionary()
        self._short: dict[str, tuple[float, int, LimitFailure]] = {}
        self.limits: dict[str, LimitState] = {}
        self._learned_s: dict[str, float] = {}

    # -- admit and settle: memory only -----------------------------------------------------

    def reserve(self, key: Key, hold_nano: int, least_nano: int | None = None) -> Reservation:
        """Sets `hold_nano` aside, or `least_nano` where the limits have no room for more.
        Raises Refusal (quota or wallet, with what is missing)."""
        lease = self._leases.get(key.id)
        if lease is None or lease.closed:
            lease = self._leases[key.id] = self._new(key)
        if not lease.fits(hold_nano):
            least_nano = hold_nano if least_nano is None else least_nano
            lease, hold_nano = self._grow(key, lease, hold_nano, least_nano)
        lease.reserved_nano += hold_nano
        lease.used_s = self._clock.monotonic_s()
        if lease.free_nano < hold_nano * 2 and not lease.lock.locked():
            gevent.spawn(self._renew, lease, hold_nano)
        return Reservation(lease, hold_nano)

    def extend(self, reservation: Reservation, need_nano: int) -> int:
        """Grows the hold of a request in flight, by `need_nano` or by what is left; returns by how
        much. May wait for recalled money as an admission does; goes before new requests."""
        lease = reservation.lease
        lease.growing_nano += need_nano
        try:
            if lease.free_nano < need_nano:
                self._find(lease, need_nano)
        finally:
            lease.growing_nano -= need_nano
        if reservation.ended:
            return 0
        taken_nano = min(need_nano, lease.free_nano)
        lease.reserved_nano += taken_nano
        reservation.hold_nano += taken_nano
        return taken_nano

    def charge(self, reservation: Reservation, cost_nano: int) -> int:
        """How much of `cost_nano` the lease can pay: the hold, then what is unreserved, then one
        grant. Moves nothing but the lease's size; call `settle` with the result."""
        lease = reservation.lease
        over = cost_nano - reservation.hold_nano
        if over <= 0:
            return cost_nano
        if lease.free_nano < over:
            self._cover(lease, over)
        taken = min(over, max(lease.free_nano, 0))
        lease.reserved_nano += taken
        reservation.hold_nano += taken
        return reservation.hold_nano

    def settle(self, reservation: Reservation, charged_nano: int) -> None:
        """Ends the hold: `charged_nano` (at most the hold) is spent, the rest is free again."""
        if reservation.ended:
            return
        assert 0 <= charged_nano <= reservation.hold_nano
        reservation.ended = True
        lease = reservation.lease
        lease.reserved_nano -= reservation.hold_nano
        lease.spent_nano += charged_nano
        lease.used_s = self._clock.monotonic_s()

    def remaining_nano(self, limit_id: str) -> int | None:
        """limit - settled - reserved - unsettled spend, as far as this worker knows; None when
        the limit is unknown here or unlimited."""
        state = self.limits.get(limit_id)
        if state is None or state.limit_nano is None:
            return None
        since_report = 0  # pending_nano holds what every lease last reported, ours too
        for lease in self._leases.values():
            if limit_id in lease.limits:
                since_report += lease.reserved_nano + lease.spent_nano - sum(lease.reported)
        return state.limit_nano - state.settled_nano - state.pending_nano - since_report

    def unknown(self, limit_ids: tuple[str, ...]) -> list[str]:
        """The limits whose figures here are missing or old: no lease of this worker reports on
        them."""
        since_s = self._clock.monotonic_s() - LIMIT_AGE_S
        old = [each for each in limit_ids if self._learned_s.get(each, -math.inf) < since_s]
        if not old:
            return old
        leases = self._leases.values()
        return [
            each
            for each in old
            if each not in self.limits or not any(each in lease.limits for lease in leases)
        ]

    def learn(self, states: Iterable[LimitState]) -> None:
        """Takes the present figures of limits; forgets old ones when there are many."""
        now_s = self._clock.monotonic_s()
        if len(self.limits) > LIMITS_KEPT:
            for limit_id in self.unknown(tuple(self.limits)):
                self.limits.pop(limit_id)
                self._learned_s.pop(limit_id, None)
        for state in states:
            self.limits[state.limit_id] = state
            self._learned_s[state.limit_id] = now_s

    @property
    def reserved_nano(self) -> int:
        """What requests in flight hold."""
        return sum(lease.reserved_nano for lease in self._leases.values())

    def unreported_nano(self, account_id: str) -> int:
        """Holds and spend of the account's leases here that the centre has not been told of."""
        return sum(
            lease.reserved_nano + lease.spent_nano - sum(lease.reported)
            for lease in self._leases.values()
            if lease.account_id == account_id
        )

    def _new(self, key: Key) -> Lease:
        gate = self._gates.get(key.account_id)
        if gate is None:
            gate = self._gates[key.account_id] = BoundedSemaphore(1)
        return Lease(key, self._clock.monotonic_s(), gate)

    # -- grants -------------------------------------------------------------------------------

    def _grow(self, key: Key, lease: Lease, hold_nano: int, least_nano: int) -> tuple[Lease, int]:
        """The lease that the hold fits, and the hold."""
        deadline_s = self._clock.monotonic_s() + self._wait_s
        while True:
            with lease.lock:
                if not lease.closed and not lease.fits(hold_nano):
                    try:
                        self._grant(lease, hold_nano - lease.spare_nano, hold_nano)
                    except Shortfall as ex:
                        late = self._clock.monotonic_s() >= deadline_s
                        if hold_nano > least_nano and (late or not ex.only_leased):
                            hold_nano = least_nano
                            continue
                        if late or not ex.only_leased:
                            raise self._denied(ex) from ex
                if not lease.closed and lease.fits(hold_nano):
                    return lease, hold_nano
            if lease.closed:
                lease = self._leases.setdefault(key.id, self._new(key))
                if lease.closed:
                    lease = self._leases[key.id] = self._new(key)
                continue
            gevent.sleep(RETRY_S)

    def _denied(self, ex: Shortfall) -> Refusal:
        denied = refusal(ex.failing)
        self._counters.add("tollgate_quota_denied_total", denied.code)
        return denied

    def _find(self, lease: Lease, need_nano: int) -> None:
        """Money for a growth: all of it, else what the budgets have."""
        deadline_s = self._clock.monotonic_s() + self._wait_s
        while True:
            with lease.lock:
                if lease.free_nano >= need_nano:
                    return
                try:
                    self._grant(lease, need_nano - lease.free_nano, need_nano)
                    return
                except Shortfall as ex:
                    if not ex.only_leased or self._clock.monotonic_s() >= deadline_s:
                        self._rest(lease, need_nano - lease.free_nano, ex)
                        return
                except Refusal as ex:
                    late = self._clock.monotonic_s() >= deadline_s
                    if late or ex.code is not Code.UNAVAILABLE:
                        return
            gevent.sleep(RETRY_S)

    def _renew(self, lease: Lease, hold_nano: int) -> None:
        with lease.lock:
            if lease.closed or lease.scarce or lease.free_nano >= hold_nano * 2:
                return
            try:
                self._grant(lease, hold_nano, hold_nano)
            except (Shortfall, Refusal):
                return  # what is there stays usable; the next request that needs more is refused

    def _cover(self, lease: Lease, over_nano: int) -> None:
        """For an answer that cost more than its hold: the overrun, else what the budgets have."""
        with lease.lock:
            need_nano = over_nano - lease.free_nano
            if need_nano <= 0:
                return  # a grant that was under way has brought it
            try:
                self._ask(lease, need_nano, need_nano)
            except Shortfall as ex:
                self._rest(lease, need_nano, ex)
            except Refusal:
                return

    def _rest(self, lease: Lease, need_nano: int, ex: Shortfall) -> None:
        """What the limits have left of a need that they do not fit."""
        left_nano = need_nano - max(failure.missing_nano for failure in ex.failing)
        try:
            if left_nano > 0:
                self._ask(lease, left_nano, left_nano)
        except (Shortfall, Refusal):
            return  # somebody else took it

    def _grant(self, lease: Lease, need_nano: int, hold_nano: int) -> None:
        """One grant, larger the sooner it follows the last one; no more than the need while
        others wait for the same money."""
        if lease.scarce:
            self._ask(lease, need_nano, need_nano)
            return
        soon = self._clock.monotonic_s() - lease.granted_s < 1.0
        lease.factor = min(lease.factor * 2, GRANT_HOLDS_MAX) if soon else GRANT_HOLDS_MIN
        self._ask(lease, need_nano, max(need_nano, min(hold_nano * lease.factor, WANT_MAX_NANO)))

    def _ask(self, lease: Lease, need_nano: int, want_nano: int) -> None:
        """A failed call leaves the outcome unknown: the same number is asked again, which the
        centre answers with the first result. One call per account at a time, so that a crowd at a
        limit leaves the database to everybody else."""
        number = lease.grant_no + 1
        try:
            with lease.gate:
                self._raise_known(lease, need_nano)
                granted = self._threads.apply(
                    self._budgets.grant,
                    (lease.id, number, self._incarnation, lease.key_id, need_nano, want_nano),
                )
        except Shortfall as ex:
            self._counters.add(_GRANTS, "shortfall")
            self._remember(ex, need_nano)
            raise
        except KeyNotActive as ex:
            self._counters.add(_GRANTS, "refused")
            raise Refusal(Code.INVALID_API_KEY, "this API key may not be used any more") from ex
        except ClockOff as ex:
            self._counters.add(_GRANTS, "refused")
            raise Refusal(Code.UNAVAILABLE, str(ex)) from ex
        except IncarnationNotOpen as ex:
            raise Sealed(self._incarnation) from ex
        except DatabaseUnavailable as ex:
            self._counters.add(_GRANTS, "unavailable")
            raise Refusal(Code.UNAVAILABLE, "budgets cannot be read now; try again") from ex
        self._counters.add(_GRANTS, "granted")
        lease.grant_no = number
        lease.granted_s = self._clock.monotonic_s()
        lease.amount_nano += granted.amount_nano
        self._learn(lease, granted.limits)

    def _remember(self, ex: Shortfall, need_nano: int) -> None:
        """The smallest need that did not fit a limit, for a moment."""
        if len(self._short) >= SHORT_MAX:
            self._short.clear()
        for failure in ex.failing:
            known = self._short.get(failure.limit_id)
            if known is None or need_nano < known[1]:
                now_s = self._clock.monotonic_s()
                self._short[failure.limit_id] = (now_s, need_nano, failure)

    def _raise_known(self, lease: Lease, need_nano: int) -> None:
        """Raises the Shortfall of a need no larger than this one that was met a moment ago."""
        now_s = self._clock.monotonic_s()
        for limit_id in lease.limit_ids:
            met = self._short.get(limit_id)
            if met is None:
                continue
            met_s, met_nano, failure = met
            if now_s - met_s >= RETRY_S:
                del self._short[limit_id]
            elif need_nano >= met_nano:
                more_nano = need_nano - met_nano
                left_nano = failure.limit_nano - failure.settled_nano
                known = msgspec.structs.replace(
                    failure,
                    missing_nano=failure.missing_nano + more_nano,
                    only_leased=need_nano <= left_nano,
                )
                raise Shortfall([known])

    def _learn(self, lease: Lease, states: list[LimitState]) -> None:
        self.learn(states)
        lease.limits |= {state.limit_id: state for state in states}

    # -- reports, give-back, recall: one round of the worker's poll ----------------------------

    def poll(self) -> None:
        """Reports holds and spend, learns limits, gives back what is idle or recalled."""
        active = [lease for lease in self._leases.values() if lease.grant_no]
        if not active:
            return
        told = {
            lease: (lease.reserved_nano, lease.spent_nano)
            for lease in active
            if lease.reported != (lease.reserved_nano, lease.spent_nano)
        }
        reports = [LeaseReport(lease.id, *figures) for lease, figures in told.items()]
        reply = self._threads.apply(self._budgets.sync, (self._incarnation, reports))
        for lease, figures in told.items():
            lease.reported = figures
        if reply.state != "open":
            raise Sealed(self._incarnation)
        self.learn(reply.limits.values())
        for lease in active:
            for limit_id in lease.limits:
                if limit_id in reply.limits:
                    lease.limits[limit_id] = reply.limits[limit_id]
        now_s = self._clock.monotonic_s()
        for lease in active:
            idle_s = now_s - lease.used_s
            recalled = lease.id in reply.recall
            if recalled and not lease.scarce:
                self._counters.add("tollgate_lease_recalls_total")
            lease.scarce = recalled
            if lease.scarce or idle_s >= IDLE_RETURN_S:
                self._give_back(lease)
            if idle_s >= IDLE_CLOSE_S:
                self._close(lease)

    def _give_back(self, lease: Lease) -> None:
        if lease.lock.locked():
            return  # a grant is on its way: somebody needs it
        with lease.lock:
            if not lease.giving_nano:
                if not lease.spare_nano:
                    return
                lease.giving_nano = lease.spare_nano
                lease.amount_nano -= lease.giving_nano  # ours first, the centre after
                lease.give_no += 1
            # After an unknown outcome the same number is sent again: the centre counts it once.
            self._threads.apply(
                self._budgets.give_back, (lease.id, lease.giving_nano, lease.give_no)
            )
            lease.giving_nano = 0

    def _close(self, lease: Lease) -> None:
        busy = lease.reserved_nano or lease.free_nano or lease.giving_nano
        if busy or lease.closed or lease.lock.locked():
            return
        lease.closed = True
        if self._leases.get(lease.key_id) is lease:
            del self._leases[lease.key_id]
        self._on_closed(lease)

    def close_all(self) -> None:
        """At the end of the worker, after the last request: everything goes back."""
        for lease in list(self._leases.values()):
            self._give_back(lease)
            self._close(lease)


def refusal(failing: list[LimitFailure]) -> Refusal:
    """The answer for a hold that does not fit: the key's quota before the wallet."""
    first = min(failing, key=lambda failure: failure.kind != "key_quota")
    left_nano = max(first.limit_nano - first.settled_nano - first.leased_nano, 0)
    missing = exact_usd(first.missing_nano)
    if first.kind == "key_quota":
        code, text = Code.QUOTA_EXCEEDED, "the key's quota"
    else:
        code, text = Code.INSUFFICIENT_BALANCE, "the wallet"
    message = (
        f"{code}: {text} has ${exact_usd(left_nano)} left and this request may cost "
        f"${missing} more than that"
    )
    return Refusal(code, message, missing_nano=first.missing_nano)
