"""Leases: money a worker took from a key's budget, so that it admits a request from memory.

One lease per key and worker, grown by grants. Check and take happen without a switch in between;
SQL runs in one thread (`sql`), one grant in flight per key. What is idle goes back; what another
worker recalls goes back at once.
"""

from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import gevent
from gevent.lock import BoundedSemaphore

from schemas.errors import Code
from services.backends.clock import WorkerClock
from services.backends.outbox import Sealed
from services.backends.sql.budgets import Budgets
from services.backends.sql.lease_records import LeaseReport
from services.core.budgets import Shortfall
from services.core.catalog import Key
from services.core.errors import Refusal
from services.core.shortfalls import refusal
from services.edge.counters import Counters
from services.edge.grants import RETRY_S, Grants
from services.edge.lease import Lease, Reservation
from services.edge.limit_figures import LimitFigures
from services.edge.threads import Threads

IDLE_RETURN_S: Final = 2.0
IDLE_CLOSE_S: Final = 60.0
SWEEP_S: Final = 1.0


class LeaseBook:
    """Every lease of one worker.

    `on_closed(lease)` is called when a lease ends for good, to write its `lease_closed`."""

    def __init__(
        self,
        budgets: Budgets,
        incarnation: str,
        threads: Threads,
        clock: WorkerClock,
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
        self._leases: dict[tuple[str, str], Lease] = {}  # by key and capped model
        self._gates: WeakValueDictionary[str, BoundedSemaphore] = WeakValueDictionary()
        self.figures = LimitFigures(clock)
        self._sweep_s = 0.0
        self._grants = Grants(budgets, incarnation, threads, clock, counters, self.figures)

    # -- admit and settle: memory only -----------------------------------------------------

    def reserve(
        self, key: Key, hold_nano: int, least_nano: int | None = None, model: str = ""
    ) -> Reservation:
        """Sets `hold_nano` aside for a call of `model`, or `least_nano` where the limits have no
        room for more. Raises Refusal (window, quota or wallet, with what is missing)."""
        if model not in key.model_caps:
            model = ""
        lease = self._leases.get((key.id, model))
        if lease is None or lease.closed:
            lease = self._leases[key.id, model] = self._new(key, model)
        if not lease.fits(hold_nano):
            least_nano = hold_nano if least_nano is None else least_nano
            lease, hold_nano = self._grow(key, lease, hold_nano, least_nano)
        lease.reserved_nano += hold_nano
        self.figures.moved(lease, hold_nano)
        lease.holds += 1
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
        self.figures.moved(lease, taken_nano)
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
        self.figures.moved(lease, taken)
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
        lease.holds -= 1
        lease.spent_nano += charged_nano
        self.figures.moved(lease, charged_nano - reservation.hold_nano)
        lease.used_s = self._clock.monotonic_s()

    @property
    def reserved_nano(self) -> int:
        """What requests in flight hold."""
        return sum(lease.reserved_nano for lease in self._leases.values())

    def unreported_nano(self, account_id: str) -> int:
        """Holds and spend of the account's leases here that the centre has not been told of."""
        mine = (each for each in self.figures.leases if each.account_id == account_id)
        return sum(lease.untold_nano for lease in mine)

    def _new(self, key: Key, model: str) -> Lease:
        gate = self._gates.get(key.account_id)
        if gate is None:
            gate = self._gates[key.account_id] = BoundedSemaphore(1)
        return Lease(key, model, self._clock.monotonic_s(), gate)

    # -- grants -------------------------------------------------------------------------------

    def _grow(self, key: Key, lease: Lease, hold_nano: int, least_nano: int) -> tuple[Lease, int]:
        """The lease that the hold fits, and the hold."""
        deadline_s = self._clock.monotonic_s() + self._wait_s
        while True:
            with lease.lock:
                if not lease.closed and not lease.fits(hold_nano):
                    try:
                        self._grants.grow(lease, hold_nano - lease.spare_nano, hold_nano)
                    except Shortfall as ex:
                        late = self._clock.monotonic_s() >= deadline_s
                        if hold_nano > least_nano and (late or not ex.only_leased):
                            hold_nano = least_nano
                            continue
                        if late or not ex.only_leased:
                            raise self._denied(key, ex) from ex
                if not lease.closed and lease.fits(hold_nano):
                    return lease, hold_nano
            if lease.closed:
                place = (key.id, lease.model)
                lease = self._leases.setdefault(place, self._new(key, lease.model))
                if lease.closed:
                    lease = self._leases[place] = self._new(key, lease.model)
                continue
            gevent.sleep(RETRY_S)

    def _denied(self, key: Key, ex: Shortfall) -> Refusal:
        denied = refusal(ex.failing, key.limit_ids[0], self._clock.now_us())
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
                    self._grants.grow(lease, need_nano - lease.free_nano, need_nano)
                    return
                except Shortfall as ex:
                    if not ex.only_leased or self._clock.monotonic_s() >= deadline_s:
                        self._grants.rest(lease, need_nano - lease.free_nano, ex)
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
                self._grants.grow(lease, hold_nano, hold_nano)
            except (Shortfall, Refusal):
                return  # what is there stays usable; the next request that needs more is refused

    def _cover(self, lease: Lease, over_nano: int) -> None:
        """For an answer that cost more than its hold: the overrun, else what the budgets have."""
        with lease.lock:
            need_nano = over_nano - lease.free_nano
            if need_nano <= 0:
                return  # a grant that was under way has brought it
            try:
                self._grants.ask(lease, need_nano, need_nano)
            except Shortfall as ex:
                self._grants.rest(lease, need_nano, ex)
            except Refusal:
                return

    # -- reports, give-back, recall: one round of the worker's poll ----------------------------

    def poll(self) -> None:
        """Reports holds and spend, learns limits, gives back what is idle or recalled. Leases that
        rest cost nothing here: a worker may have thousands, one for each key used lately."""
        if self._leases:
            self._sync(list(self.figures.leases))
        else:
            self._clock.follow()
        if self._clock.monotonic_s() >= self._sweep_s:
            self._sweep_s = self._clock.monotonic_s() + SWEEP_S
            self._close_idle()

    def _sync(self, active: list[Lease]) -> None:
        told = {
            lease: (lease.reserved_nano, lease.spent_nano)
            for lease in active
            if lease.reported != (lease.reserved_nano, lease.spent_nano)
        }
        reports = [LeaseReport(lease.id, *figures) for lease, figures in told.items()]
        ahead_us = self._clock.ahead_us()
        reply = self._threads.apply(self._budgets.sync, (self._incarnation, reports))
        if not reply.clock_off:
            self._clock.trust(ahead_us)
        for lease, figures in told.items():
            self.figures.moved(lease, sum(lease.reported) - sum(figures))
            lease.reported = figures
        if reply.state != "open":
            raise Sealed(self._incarnation)
        self.figures.learn(reply.limits.values())
        now_s = self._clock.monotonic_s()
        for lease in active:
            recalled = lease.id in reply.recall
            if recalled and not lease.scarce:
                self._counters.add("tollgate_lease_recalls_total")
            # With a clock that is off nothing may be spent from memory: what is free goes back.
            lease.scarce = recalled or reply.clock_off
            if lease.scarce or now_s - lease.used_s >= IDLE_RETURN_S:
                self._give_back(lease)
            if lease.rests:
                self.figures.forget(lease)
                lease.scarce = False

    def _close_idle(self) -> None:
        now_s = self._clock.monotonic_s()
        for lease in list(self._leases.values()):
            if now_s - lease.used_s >= IDLE_CLOSE_S:
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
        busy = lease.holds or lease.free_nano or lease.giving_nano
        if busy or lease.closed or lease.lock.locked():
            return
        lease.closed = True
        place = (lease.key_id, lease.model)
        if self._leases.get(place) is lease:
            del self._leases[place]
        self.figures.forget(lease)
        if lease.grant_no or lease.unsure:  # else the centre knows of none
            self._on_closed(lease)

    def close_all(self) -> bool:
        """At the end of the worker, after the last request: everything goes back. False, or
        DatabaseUnavailable: some leases are still open, to be closed as those of a dead worker."""
        for lease in list(self._leases.values()):
            self._give_back(lease)
            self._close(lease)
        return not self._leases
