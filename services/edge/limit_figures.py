"""What a worker knows of limits: their figures as the centre last told them, less what happened
here since."""

import math
from collections.abc import Iterable
from typing import Final

from services.backends.clock import Clock
from services.core.budgets import LimitState
from services.edge.lease import Lease

LIMIT_AGE_S: Final = 1.0  # figures of a limit that no lease here reports on are read after this
LIMITS_KEPT: Final = 10_000


class LimitFigures:
    """Of every limit that this worker asked about lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, LimitState] = {}
        self._learned_s: dict[str, float] = {}
        self._leases: dict[str, set[Lease]] = {}  # by limit: those that report on it
        self._untold_nano: dict[str, int] = {}  # by limit: the sum of theirs
        self.leases: set[Lease] = set()  # that report on their limits

    def get(self, limit_id: str) -> LimitState | None:
        """As last read; None when it is unknown here."""
        return self._known.get(limit_id)

    def remaining_nano(self, state: LimitState) -> int | None:
        """limit - settled - reserved - unsettled spend, as far as this worker knows; None when
        the limit is unlimited."""
        if state.limit_nano is None:
            return None
        # pending_nano holds what every lease last reported, ours too
        known_nano = state.settled_nano + state.pending_nano
        return state.limit_nano - known_nano - self._untold_nano.get(state.limit_id, 0)

    def unknown(self, limit_ids: Iterable[str]) -> list[str]:
        """The limits whose figures here are missing or old: no lease of this worker reports on
        them."""
        since_s = self._clock.monotonic_s() - LIMIT_AGE_S
        return [
            each
            for each in limit_ids
            if self._learned_s.get(each, -math.inf) < since_s
            and not (each in self._known and self._leases.get(each))
        ]

    def learn(self, states: Iterable[LimitState]) -> None:
        """Takes the present figures of limits; forgets old ones when there are many."""
        now_s = self._clock.monotonic_s()
        if len(self._known) > LIMITS_KEPT:
            for limit_id in self.unknown(tuple(self._known)):
                self._known.pop(limit_id)
                self._learned_s.pop(limit_id, None)
        for state in states:
            self._known[state.limit_id] = state
            self._learned_s[state.limit_id] = now_s

    def follow(self, lease: Lease, states: list[LimitState]) -> None:
        """A grant told these; from now on the lease reports on them."""
        self.learn(states)
        self.leases.add(lease)
        for state in states:
            if state.limit_id not in lease.limits:
                lease.limits.add(state.limit_id)
                self._leases.setdefault(state.limit_id, set()).add(lease)
                self._add(state.limit_id, lease.untold_nano)

    def moved(self, lease: Lease, nano: int) -> None:
        """What the lease has to tell grew by so much."""
        for limit_id in lease.limits:
            self._add(limit_id, nano)

    def _add(self, limit_id: str, nano: int) -> None:
        self._untold_nano[limit_id] = self._untold_nano.get(limit_id, 0) + nano

    def forget(self, lease: Lease) -> None:
        """The lease rests or has ended: it reports on nothing any more."""
        self.moved(lease, -lease.untold_nano)
        self.leases.discard(lease)
        for limit_id in lease.limits:
            following = self._leases[limit_id]
            following.discard(lease)
            if not following:
                del self._leases[limit_id], self._untold_nano[limit_id]
        lease.limits.clear()
