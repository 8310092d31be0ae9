"""What a key still has: the figures behind the accounting headers."""

import contextlib
from typing import NamedTuple

from services.backends.clock import Clock
from services.backends.sql.accounts import Accounts
from services.backends.sql.engine import DatabaseUnavailable
from services.core.budgets import LimitState
from services.core.catalog import Account, Key
from services.core.shortfalls import WindowLeft, window_left
from services.edge.limit_figures import LimitFigures
from services.edge.threads import Threads


class Standing(NamedTuple):
    """Nano-USD. `remaining` is the least over quotas, allotment and wallet; `window` the tightest
    spend window, None without one; `org` what an org's wallet has, None for a personal key."""

    remaining_nano: int = 0
    window: WindowLeft | None = None
    org_nano: int | None = None


class Standings:
    """From the freshest figures that this worker has; a limit that none of its leases touches is
    read, at most once a second. While it cannot be read the last figures stand."""

    def __init__(
        self, figures: LimitFigures, accounts: Accounts, threads: Threads, clock: Clock
    ) -> None:
        self._figures = figures
        self._accounts = accounts
        self._threads = threads
        self._clock = clock

    def of(self, key: Key, account: Account) -> Standing:
        figures = self._figures
        self._read(key.account_id, key.limit_ids)
        remaining_nano: int | None = None
        window_nano, window = 0, None
        org_nano = 0 if account.kind == "org" else None
        for limit_id in key.limit_ids:
            state = figures.get(limit_id)
            left_nano = figures.remaining_nano(state) if state is not None else None
            if state is None or left_nano is None:
                continue
            if state.is_window:
                if window is None or left_nano < window_nano:
                    window_nano, window = left_nano, state
                continue
            if remaining_nano is None or left_nano < remaining_nano:
                remaining_nano = left_nano
            if org_nano is not None and state.kind == "wallet":
                org_nano = left_nano
        told = None
        if window is not None:
            told = window_left(window, window_nano, self._clock.now_us())
        return Standing(remaining_nano or 0, told, org_nano)

    def caps(self, key: Key) -> dict[str, tuple[int, int]]:
        """Of each model that is capped for the key's member: (used, cap), nano-USD."""
        self._read(key.account_id, tuple(key.model_caps.values()))
        found = {}
        for model, limit_id in key.model_caps.items():
            state = self._figures.get(limit_id)
            if state is not None and state.limit_nano is not None:
                left_nano = self._figures.remaining_nano(state) or 0
                found[model] = (state.limit_nano - left_nano, state.limit_nano)
        return found

    def _read(self, account_id: str, limit_ids: tuple[str, ...]) -> None:
        unknown = self._figures.unknown(limit_ids)
        if unknown:
            with contextlib.suppress(DatabaseUnavailable):
                states: list[LimitState] = self._threads.apply(
                    self._accounts.limit_states, (account_id, unknown)
                )
                self._figures.learn(states)
