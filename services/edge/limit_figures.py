"""What a worker knows of limits: their figures as the centre last told them, less what happened
here since."""

import math
from collections.abc import Collection, Iterable
from typing import Final

from services.backends.clock import Clock
from services.core.budgets import LimitState
from services.edge.lease import Lease

LIMIT_AGE_S: Final = 1.0  # figures of a limit that no lease here reports on are read after this
LIMITS_KEPT: Final = 10_000


class LimitFigures:
    """Over the leases of one worker."""

    def __init__(self, leases: Collection[Lease], clock: Clock) -> None:
        self._leases = leases
        self._clock = clock
        self._known: dict[str, LimitState] = {}
        self._learned_s: dict[str, float] = {}

    def get(self, limit_id: str) -> LimitState | None:
        """As last read; None when it is unknown here."""
        return self._known.get(limit_id)

    def remaining_nano(self, limit_id: str) -> int | None:
        """limit - settled - reserved - unsettled spend, as far as this worker knows; None when
        the limit is unknown here or unlimited."""
        state = self._known.get(limit_id)
        if state is None or state.limit_nano is None:
            return None
        since_report = 0  # pending_nano holds what every lease last reported, ours too
        for lease in self._leases:
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
        return [
            each
            for each in old
            if each not in self._known or not any(each in lease.limits for lease in self._leases)
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
