"""Drives jobs: claims what is due, runs one step of each in a thread, keeps the claims alive.

A step is one call to an upstream at most and ends with one write under the job's fence. Between
steps a job holds nothing, so any number of jobs wait without a worker; one whose process died is
due again when its claim runs out, by the same query.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.job_claims import Claimed
from services.backends.sql.job_ends import Free
from services.backends.sql.job_records import Attempt, ClaimLost, Job
from services.backends.telemetry import get_logger, metric
from services.batch import create, poll
from services.batch.parts import Parts
from services.batch.settle import expected_cost_nano
from services.core.jobs import AttemptState, Fault, Phase

_CLAIM_MAX: Final = 50
_CLAIMS_MAX: Final = 20  # of a job whose steps never end
_PACE_S: Final = 0.02  # between two claims: what became due meanwhile comes in one
_AWAY_S: Final = 1.0
_DRAIN_S: Final = 25.0
_STUCK_S: Final = 30.0  # between two looks at what waits for an upstream that hangs

_STEPS: Final[dict[Phase, Callable[[Parts, Job, Attempt], None]]] = {
    Phase.SUBMITTING: create.take_over,
    Phase.UNKNOWN: create.look_up,
    Phase.POLLING: poll.poll,
    Phase.FETCHING: poll.poll,
}


class JobEngine:
    """One per process; `wake` may be called from any thread. `beat` is called every round."""

    def __init__(self, parts: Parts, beat: Callable[[], None] = lambda: None) -> None:
        self._parts = parts
        self._alive = beat
        self._threads = parts.config.batch.threads
        self._lock = threading.Lock()
        self._held: dict[str, Job] = {}
        self._wake = threading.Event()
        self._put_off_s = 0.0
        self._log = get_logger()

    def wake(self) -> None:
        """A job became due: look at once."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; steps that run then are finished."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="job") as pool:
            while not stop.is_set():
                self._wake.clear()
                self._alive()
                try:
                    found = self._claim()
                except DatabaseUnavailable as ex:
                    self._log.warning("jobs_not_claimed", error=str(ex))
                    stop.wait(_AWAY_S)
                    continue
                for each in found:
                    pool.submit(self._step, each)
                if found:
                    stop.wait(_PACE_S)
                else:
                    self._wake.wait(self._parts.config.batch.poll_s)
                    stop.wait(_PACE_S)

    def beat(self, stop: threading.Event) -> None:
        """Keeps the claims of long steps alive, until `stop` and then until they have ended."""
        while not stop.wait(self._parts.config.batch.claim_s / 4):
            self._prolong()
        waited_s = 0.0
        while self._held and waited_s < _DRAIN_S:
            self._prolong()
            threading.Event().wait(0.5)
            waited_s += 0.5

    def _prolong(self) -> None:
        with self._lock:
            held = list(self._held.values())
        try:
            self._parts.claims.prolong(held)
        except DatabaseUnavailable as ex:
            self._log.warning("claims_not_prolonged", error=str(ex))

    def _claim(self) -> list[Claimed]:
        with self._lock:
            free = self._threads - len(self._held)
        if free <= 0:
            return []
        self._put_off()
        found = self._parts.claims.claim(min(free, _CLAIM_MAX), self._parts.lanes.full())
        with self._lock:
            self._held.update((each.job.id, each.job) for each in found)
        return found

    def _put_off(self) -> None:
        """What is due at upstreams that hang is looked at later: it need not be passed over at
        every claim."""
        now_s = self._parts.clock.monotonic_s()
        if now_s >= self._put_off_s:
            self._put_off_s = now_s + _AWAY_S
            for channel in self._parts.lanes.stuck():
                self._parts.claims.postpone(channel, _STUCK_S)

    def _step(self, claimed: Claimed) -> None:
        held = claimed.job
        try:
            metric("tollgate_job_steps_total").labels(held.phase.value).inc()
            self._run_step(held, claimed.tried)
        except ClaimLost:
            self._log.info("claim_lost", job=held.id, phase=held.phase.value)
        except DatabaseUnavailable as ex:
            self._log.warning("step_not_written", job=held.id, error=str(ex))
        except Exception:  # due again when the claim runs out, a few times
            self._log.exception("step_failed", job=held.id, phase=held.phase.value)
        finally:
            with self._lock:
                self._held.pop(held.id, None)
            self._wake.set()

    def _run_step(self, held: Job, tried: Attempt | None) -> None:
        parts = self._parts
        if held.claims > _CLAIMS_MAX:
            sent = held.phase is not Phase.QUEUED
            end = Free(
                Phase.FAILED,
                Fault.GATEWAY_FAULT,
                "its steps failed again and again",
                attempt=AttemptState.LOST if sent else None,
                provider_cost_nano=expected_cost_nano(parts, held) if sent else 0,
            )
            parts.ends.free(held, end)
        elif parts.clock.now_us() >= _end_at(held):
            poll.too_old(parts, held, tried)
        elif held.phase is Phase.QUEUED:
            create.from_queue(parts, held)
        else:
            assert tried is not None  # committed in the transaction that left the queue
            with parts.lanes.step(held.channel) as taken:
                if taken:
                    _STEPS[held.phase](parts, held, tried)
                else:
                    parts.claims.later(held, 0.0)  # due when its channel has room


def _end_at(held: Job) -> int:
    if held.phase is Phase.QUEUED and held.start_by is not None:
        return min(held.start_by, held.deadline_at)
    return held.deadline_at
