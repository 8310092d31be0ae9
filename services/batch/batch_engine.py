"""Gives the batches of all accounts their turns, and keeps the claims on them alive."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from services.backends.objects.port import NotStored, StoreUnavailable
from services.backends.sql.batch_claims import BatchClaims
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.batch_records import Batch, BatchLost
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger
from services.batch.batch_send import Sender
from services.batch.batch_turn import Turns
from services.batch.parts import Parts

_AWAY_S: Final = 1.0
_DRAIN_S: Final = 20.0  # for the answers under way; then they are given up


class BatchEngine:
    """One per process; `wake` may be called from any thread."""

    def __init__(
        self, parts: Parts, claims: BatchClaims, lines: BatchLines, sender: Sender
    ) -> None:
        self._parts = parts
        self._claims = claims
        self._lines = lines
        self._sender = sender
        batch = parts.config.batch
        self._turns_max = max(1, batch.lines_at_once // batch.account_lines)
        self._lock = threading.Lock()
        self._held: dict[str, Batch] = {}
        self._wake = threading.Event()
        self._log = get_logger()

    def wake(self) -> None:
        """A batch became due: look at once."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; lines that run then may end, for a while."""
        most = self._parts.config.batch.lines_at_once
        with (
            ThreadPoolExecutor(most, thread_name_prefix="line") as senders,
            ThreadPoolExecutor(self._turns_max, thread_name_prefix="batch") as pool,
        ):
            turns = Turns(self._parts, self._claims, self._lines, self._sender, senders)
            while not stop.is_set():
                self._wake.clear()
                found = self._claim()
                if found is None:
                    self._wake.wait(self._parts.config.batch.poll_s)
                else:
                    pool.submit(self._turn, turns, found, stop)

    def beat(self, stop: threading.Event) -> None:
        """Keeps the claims alive, until `stop` and then until the turns have ended."""
        while not stop.wait(self._parts.config.batch.claim_s / 4):
            self._prolong()
        waited_s = 0.0
        while self._held:
            self._prolong()
            threading.Event().wait(0.5)
            waited_s += 0.5
            if waited_s >= _DRAIN_S:
                self._sender.abort()

    def _prolong(self) -> None:
        with self._lock:
            held = list(self._held.values())
        try:
            self._claims.prolong(held)
        except DatabaseUnavailable as ex:
            self._log.warning("batches_not_prolonged", error=str(ex))

    def _claim(self) -> Batch | None:
        with self._lock:
            if len(self._held) >= self._turns_max:
                return None
        try:
            found = self._claims.claim()
        except DatabaseUnavailable as ex:
            self._log.warning("batches_not_claimed", error=str(ex))
            self._wake.wait(_AWAY_S)
            return None
        if found is not None:
            with self._lock:
                self._held[found.id] = found
        return found

    def _turn(self, turns: Turns, held: Batch, stop: threading.Event) -> None:
        try:
            turns.run(held, stop)
        except BatchLost:
            self._log.info("batch_lost", batch=held.id)
        except (DatabaseUnavailable, StoreUnavailable, NotStored) as ex:
            self._log.warning("turn_not_written", batch=held.id, error=str(ex))
        except Exception:  # due again when the claim runs out
            self._log.exception("turn_failed", batch=held.id, phase=held.phase.value)
        finally:
            with self._lock:
                self._held.pop(held.id, None)
            self._wake.set()
