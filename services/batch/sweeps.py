"""What runs on a timer: late results, retention and its announcement, old names. The only file
that knows APScheduler.

Any number of processes have the timers; the one that leads does the work. Jobs themselves are
never scheduled here: what is due is a column of the database.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler

from services.backends.objects.port import StoreUnavailable
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.housekeeping import Housekeeping, Watched
from services.backends.telemetry import get_logger
from services.batch.lanes import Lanes
from services.batch.late import look_again
from services.batch.parts import Parts
from services.core.ids import uuid7_hex

_LEADER: Final = "batch-sweeps"
_LEAD_S: Final = 30
_WATCH_S: Final = 15
_RETENTION_S: Final = 30
_PURGE_S: Final = 600
_ANNOUNCE_S: Final = 300
_BATCH: Final = 500
_IDLE_S: Final = 300.0
_LOOKS: Final = 8  # for late results at once, of one upstream three quarters at most


class Sweeps:
    """`run` is a loop of the process."""

    def __init__(self, parts: Parts, housekeeping: Housekeeping) -> None:
        self._parts = parts
        self._housekeeping = housekeeping
        self._holder = uuid7_hex()
        self._looks = ThreadPoolExecutor(_LOOKS, thread_name_prefix="late")
        self._lanes = Lanes(_LOOKS, parts.clock.monotonic_s)
        self._lock = threading.Lock()
        self._looked_at: set[str] = set()
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for step, every_s in (
            (self._watch, _WATCH_S),
            (self._retention, _RETENTION_S),
            (self._purge, _PURGE_S),
            (self._announce, _ANNOUNCE_S),
        ):
            scheduler.add_job(self._led, "interval", args=[step], seconds=every_s)
        scheduler.start()
        stop.wait()
        scheduler.shutdown(wait=True)
        self._looks.shutdown(cancel_futures=True)

    def _led(self, step: Callable[[], None]) -> None:
        try:
            if self._housekeeping.lead(_LEADER, self._holder, _LEAD_S):
                step()
        except (DatabaseUnavailable, StoreUnavailable) as ex:
            self._log.warning("sweep_postponed", sweep=step.__name__, error=str(ex))
        except Exception:
            self._log.exception("sweep_failed", sweep=step.__name__)

    def _watch(self) -> None:
        """Begins looks; those that an upstream keeps waiting go on beside the next ones."""
        for seen in self._housekeeping.watched(_BATCH, self._lanes.full()):
            with self._lock:
                if seen.job.id in self._looked_at:
                    continue
                self._looked_at.add(seen.job.id)
            self._looks.submit(self._look, seen)

    def _look(self, seen: Watched) -> None:
        try:
            with self._lanes.step(seen.attempt.channel) as taken:
                if taken:
                    look_again(self._parts, self._housekeeping, seen)
        except (DatabaseUnavailable, StoreUnavailable) as ex:
            self._log.warning("late_look_postponed", job=seen.job.id, error=str(ex))
        except Exception:
            self._log.exception("late_look_failed", job=seen.job.id)
            self._housekeeping.looked(seen)
        finally:
            with self._lock:
                self._looked_at.discard(seen.job.id)

    def _retention(self) -> None:
        store, housekeeping = self._parts.store, self._housekeeping
        for each in housekeeping.over(_BATCH):
            # Bytes that were stored a moment ago may be about to be named again.
            if each.wanted or store.delete(each.sha256, idle_s=_IDLE_S):
                housekeeping.let_go(each.sha256)
        store.sweep()

    def _announce(self) -> None:
        self._housekeeping.announce(_BATCH)

    def _purge(self) -> None:
        keep_us = self._parts.config.batch.idempotency_s * 1_000_000
        self._housekeeping.purge(keep_us, _BATCH)
