"""Calls for money: one grant in flight per account, sized by how fast money goes; what did not
fit a moment ago is not asked again."""

from typing import Final

import msgspec

from schemas.errors import Code
from services.backends.clock import WorkerClock
from services.backends.outbox import Sealed
from services.backends.sql.budgets import Budgets
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.lease_records import ClockOff, IncarnationNotOpen, KeyNotActive
from services.core.budgets import LimitFailure, Shortfall
from services.core.errors import Refusal
from services.edge.counters import Counters
from services.edge.lease import GRANT_HOLDS_MIN, Lease
from services.edge.limit_figures import LimitFigures
from services.edge.threads import Threads

RETRY_S: Final = 0.05
GRANT_HOLDS_MAX: Final = 512
SHORT_MAX: Final = 10_000
WANT_MAX_NANO: Final = 1_000_000_000_000  # a worker never asks for more than $1,000 at once
_GRANTS: Final = "tollgate_lease_grants_total"


class Grants:
    """Of one worker; `figures` learn what comes with a grant."""

    def __init__(
        self,
        budgets: Budgets,
        incarnation: str,
        threads: Threads,
        clock: WorkerClock,
        counters: Counters,
        figures: LimitFigures,
    ) -> None:
        self._budgets = budgets
        self._incarnation = incarnation
        self._threads = threads
        self._clock = clock
        self._counters = counters
        self._figures = figures
        self._short: dict[str, tuple[float, int, LimitFailure]] = {}

    def grow(self, lease: Lease, need_nano: int, hold_nano: int) -> None:
        """One grant, larger the sooner it follows the last one; no more than the need while
        others wait for the same money."""
        if lease.scarce:
            self.ask(lease, need_nano, need_nano)
            return
        soon = self._clock.monotonic_s() - lease.granted_s < 1.0
        lease.factor = min(lease.factor * 2, GRANT_HOLDS_MAX) if soon else GRANT_HOLDS_MIN
        self.ask(lease, need_nano, max(need_nano, min(hold_nano * lease.factor, WANT_MAX_NANO)))

    def ask(self, lease: Lease, need_nano: int, want_nano: int) -> None:
        """A failed call leaves the outcome unknown: the same number is asked again, which the
        centre answers with the first result. One call per account at a time, so that a crowd at a
        limit leaves the database to everybody else."""
        number = lease.grant_no + 1
        ahead_us = 0
        try:
            with lease.gate:
                self._raise_known(lease, need_nano)
                ahead_us = self._clock.ahead_us()
                granted = self._threads.apply(
                    self._budgets.grant,
                    (
                        lease.id,
                        number,
                        self._incarnation,
                        lease.key_id,
                        need_nano,
                        want_nano,
                        lease.model,
                    ),
                )
        except Shortfall as ex:
            self._counters.add(_GRANTS, "shortfall")
            self._remember(ex, need_nano)
            raise
        except KeyNotActive as ex:
            self._counters.add(_GRANTS, "refused")
            raise Refusal(Code.INVALID_API_KEY, "this API key may not be used any more") from ex
        except ClockOff as ex:
            self._clock.trust(ahead_us, ex.off_us)
            self._counters.add(_GRANTS, "refused")
            raise Refusal(Code.UNAVAILABLE, str(ex)) from ex
        except IncarnationNotOpen as ex:
            raise Sealed(self._incarnation) from ex
        except DatabaseUnavailable as ex:
            lease.unsure = True
            self._counters.add(_GRANTS, "unavailable")
            raise Refusal(Code.UNAVAILABLE, "budgets cannot be read now; try again") from ex
        self._counters.add(_GRANTS, "granted")
        self._clock.trust(ahead_us)
        lease.grant_no = number
        lease.granted_s = self._clock.monotonic_s()
        lease.amount_nano += granted.amount_nano
        self._figures.follow(lease, granted.limits)

    def rest(self, lease: Lease, need_nano: int, ex: Shortfall) -> None:
        """What the limits have left of a need that they do not fit."""
        left_nano = need_nano - max(failure.missing_nano for failure in ex.failing)
        try:
            if left_nano > 0:
                self.ask(lease, left_nano, left_nano)
        except (Shortfall, Refusal):
            return  # somebody else took it

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
        known = []
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
                known.append(
                    msgspec.structs.replace(
                        failure,
                        missing_nano=failure.missing_nano + more_nano,
                        only_leased=need_nano <= left_nano,
                    )
                )
        if known:
            raise Shortfall(known)
