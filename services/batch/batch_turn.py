"""One turn of a claimed batch: its next step, or a stretch of its lines.

A turn ends after a while, so that the batches of all accounts take turns. Toward a full limit or an
overloaded upstream it goes slower: half as many lines at once, and pauses that double.
"""

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Final

from services.backends.sql.batch_claims import BatchClaims
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.batch_records import Batch, Line
from services.backends.sql.engine import now_us
from services.backends.telemetry import get_logger
from services.batch.batch_input import read_lines
from services.batch.batch_output import make_files
from services.batch.batch_send import Sender, Sent
from services.batch.parts import Parts
from services.core.access import rules_of
from services.core.batches import LINE_ENDS, LineState, Phase

_TURN_S: Final = 20.0
_LOOK_S: Final = 0.5
_PAUSE_S: Final = 0.25  # after the first refusal
_PAUSE_MAX_S: Final = 60.0
_TIMES_MAX: Final = 8
_LONG_S: Final = 2.0  # a longer pause ends the turn
_WAIT_LEFT_S: Final = 0.5
_FORGET: Final = 500


class Turns:
    """Runs turns; safe in threads, each with a batch of its own."""

    def __init__(
        self,
        parts: Parts,
        claims: BatchClaims,
        lines: BatchLines,
        sender: Sender,
        senders: Executor,
    ) -> None:
        self.parts = parts
        self.claims = claims
        self.lines = lines
        self.sender = sender
        self.senders = senders
        self.refused: dict[str, int] = {}  # by batch: times in a row, also over several turns

    def run(self, held: Batch, stop: threading.Event) -> None:
        """Raises BatchLost, DatabaseUnavailable, StoreUnavailable."""
        wait_s = 0.0
        if held.phase is Phase.VALIDATING:
            self._validate(held)
        elif held.phase is Phase.RUNNING:
            wait_s = _Stretch(self, held, stop).run()
        elif held.phase is Phase.FINISHING:
            self._finish(held)
        else:
            self._clean(held)
            return
        self.claims.give_back(held, wait_s)

    def width(self, held: Batch) -> int:
        """Lines at once: of a key with a limit at most half, the other half is for who waits."""
        most = self.parts.config.batch.account_lines
        view = self.parts.views.view()
        key = view.keys.get(held.key_id)
        if key is None:
            return 1
        parent = view.keys.get(key.parent_id) if key.parent_id is not None else None
        for rule in rules_of(view.snapshot, key, parent).rates:
            if rule.concurrency:
                most = min(most, max(1, rule.concurrency // 2))
        return most

    def _validate(self, held: Batch) -> None:
        found = read_lines(self.parts, held)
        if found.errors:
            self.claims.failed(held, found.errors)
        else:
            self.claims.start(held, found.lines)

    def _finish(self, held: Batch) -> None:
        phase = Phase.COMPLETED
        if held.cancel_at is not None:
            phase = Phase.CANCELLED
        elif held.expired:
            phase = Phase.EXPIRED
        output, error, tally = make_files(self.parts, self.claims, held)
        self.claims.end(held, phase, output, error, model=tally.model, usage=tally.usage())

    def _clean(self, held: Batch) -> None:
        """The files hold every answer: the lines, and the input's bytes, are let go."""
        while page := self.claims.page(held, LINE_ENDS, 0, _FORGET):
            for line in page:
                if line.answer:
                    self.parts.store.delete(line.answer)
            self.claims.forget(held, page)
        self.parts.uploads.delete(held.account_id, held.lines_id)
        self.claims.move(held, claims=0, next_at=None)


class _Stretch:
    """The lines of one turn."""

    def __init__(self, turns: Turns, held: Batch, stop: threading.Event) -> None:
        self._turns = turns
        self._held = held
        self._stop = stop
        self._most = self._width = turns.width(held)
        self._running: dict[Future[Sent], Line] = {}
        self._pause_until_s = 0.0

    def run(self) -> float:
        """Seconds after which the batch is due again."""
        ends_s = time.monotonic() + _TURN_S
        while True:
            pause_s = max(0.0, self._pause_until_s - time.monotonic())
            over = self._stop.is_set() or time.monotonic() > ends_s or pause_s > _LONG_S
            if over and not self._running:
                return pause_s
            if not over and not pause_s and len(self._running) < self._width:
                wait_s = self._next()
                if wait_s is not None:
                    return wait_s
            self._collect(pause_s)

    def _collect(self, pause_s: float) -> None:
        """Waits for the next line that ends; when none runs, for a pause to end."""
        if not self._running:
            self._stop.wait(pause_s)
            return
        done, _ = wait(self._running, _LOOK_S, return_when=FIRST_COMPLETED)
        for future in done:
            line = self._running.pop(future)
            try:
                self._learn(future.result())
            except Exception:  # its line stays `sending` until it is known what became of it
                get_logger().exception("line_failed", batch=line.batch_id, line=line.no)
                self._learn(Sent(False))

    def _learn(self, sent: Sent) -> None:
        refused = self._turns.refused
        if sent.done:
            refused.pop(self._held.id, None)
            self._width = min(self._most, self._width + 1)
            return
        self._width = max(1, self._width // 2)
        times = refused.get(self._held.id, 0)
        refused[self._held.id] = min(times + 1, _TIMES_MAX)
        wait_s = max(sent.wait_s, _PAUSE_S * 2**times)
        until_s = time.monotonic() + min(wait_s, _PAUSE_MAX_S)
        self._pause_until_s = max(self._pause_until_s, until_s)

    def _next(self) -> float | None:
        """Starts lines; or, when none is left, takes the next step and says when to go on."""
        claims = self._turns.claims
        self._held = held = claims.now(self._held)
        expired = claims.now_us() >= held.expires_at
        if expired or held.cancel_at is not None:
            state = LineState.CANCELED if held.cancel_at is not None else LineState.EXPIRED
            self._held = held = claims.end_queued(held, state)
        free = self._width - len(self._running)
        for line in self._turns.lines.begin(held, free):
            sent = self._turns.senders.submit(self._turns.sender.send, held, line, self._stop)
            self._running[sent] = line
        if self._running:
            return None
        left = claims.page(held, [LineState.SENDING], 0)
        if left:
            waiting = self._turns.lines.left(held, left, over=expired)
            return _WAIT_LEFT_S if waiting else None
        claims.move(held, phase=Phase.FINISHING, finishing_at=now_us())
        self._turns.refused.pop(held.id, None)
        return 0.0
