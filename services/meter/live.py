"""One line on stdout for every request that the books have taken: what it used, what it cost.

The sink only appends to a bounded queue; a thread of its own formats and writes, so that a slow
terminal costs lines, never bookings.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from schemas.events import Error, Usage
from services.backends.sql.accounts import Balance
from services.backends.sql.engine import DatabaseUnavailable
from services.core.money import cents_down, exact_usd
from services.core.texts import one_line

_QUEUE: Final = 10_000
_LINES_PER_DRAIN: Final = 100
_DRAIN_S: Final = 0.1


class Live:
    """`balance_of` reads an account's wallet as the books have it now."""

    def __init__(self, balance_of: Callable[[str], Balance], out: TextIO | None = None) -> None:
        self._balance_of = balance_of
        self._out = out if out is not None else sys.stdout
        self._queue: deque[Usage | Error] = deque(maxlen=_QUEUE)

    def show(self, terminals: Sequence[Usage | Error]) -> None:
        """Called by the sink after its commit; never blocks. The oldest are dropped when full."""
        self._queue.extend(terminals)

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(_DRAIN_S):
            self.drain()
        self.drain()

    def drain(self) -> None:
        """Writes what waits: at most 100 lines, then the number of the rest."""
        terminals = [self._queue.popleft() for _ in range(len(self._queue))]
        shown, more = terminals[-_LINES_PER_DRAIN:], max(0, len(terminals) - _LINES_PER_DRAIN)
        if not shown:
            return
        balances: dict[str, int | None] = {}
        lines = [f"... and {more} more"] if more else []
        for event in shown:
            if event.account_id not in balances:
                balances[event.account_id] = self._balance_nano(event.account_id)
            lines.append(line_of(event, balances[event.account_id]))
        try:
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()
        except (OSError, ValueError):
            pass  # stdout was closed: the books go on

    def _balance_nano(self, account_id: str) -> int | None:
        try:
            wallet = self._balance_of(account_id)
        except DatabaseUnavailable:
            return None
        return wallet.limit_nano - wallet.settled_nano


def line_of(event: Usage | Error, balance_nano: int | None) -> str:
    """`12:30:01  claude-sonnet-4-5  in 1,204  out 380  cache 18,002  $0.0123  balance $9.98`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.occurred_at / 1_000_000))
    parts = [clock, f"{one_line(event.model) or '-':<28}"]
    if isinstance(event, Usage):
        used = event.usage
        cached = sum(units for name, units in used.items() if name.startswith("cache_"))
        parts.append(f"in {used.get('input', 0):>7,}  out {used.get('output', 0):>6,}")
        parts.append(f"cache {cached:>7,}  ${exact_usd(event.charged_nano):<12}")
        if event.outcome != "completed":
            parts.append(f"({event.outcome})")
    else:
        parts.append(f"free: {event.code}")
    parts.append("balance ?" if balance_nano is None else f"balance ${cents_down(balance_nano)}")
    return "  ".join(parts)
