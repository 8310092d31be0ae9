"""Tells this worker's watchers that a job has changed.

Watchers are greenlets with an idle client each; the batch service is asked by one call per worker
that waits, however many watch. A hint may come twice or, when the service restarts, for nothing;
watchers look for themselves now and then, so that a lost one only costs time.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import gevent
import msgspec
from gevent.event import Event

from services.backends import telemetry
from services.backends.clock import Clock
from services.backends.http.private_client import ApiUnavailable, PrivateClient
from services.backends.identity import OPERATOR
from services.core.access import why_ended
from services.core.catalog import Key
from services.edge.snapshot import View

_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 0.5

log = telemetry.get_logger()


class _Changes(msgspec.Struct):
    cursor: str
    jobs: list[str]
    all: bool


class Watcher:
    """One client that waits for changes of a job. `revoked`: its key was taken away, or is over."""

    def __init__(self, key: Key, revoked: bool) -> None:
        self.key = key
        self.revoked = revoked
        self._event = Event()

    def wake(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Until something has changed, at most so long; whether it has."""
        if self.revoked:
            return True
        self._event.wait(timeout_s)
        heard: bool = self._event.is_set()  # also what came when the time was just over
        self._event.clear()
        return heard


class JobFeed:
    """Asks while somebody watches. `watching` gives a watcher that is woken at every change."""

    def __init__(self, client: PrivateClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._watchers: dict[str, set[Watcher]] = defaultdict(set)
        self._asking: gevent.Greenlet | None = None

    @contextmanager
    def watching(self, job_id: str, key: Key, view: View) -> Iterator[Watcher]:
        """For as long as a job is watched; `job_id` without its prefix."""
        watcher = Watcher(key, bool(why_ended(view.snapshot, key, self._clock.now_us())))
        self._watchers[job_id].add(watcher)
        if self._asking is None or self._asking.dead:
            self._asking = gevent.spawn(self._ask)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def end_revoked(self, view: View, now_us: int) -> None:
        """Who watches with a key that was taken away, or is over, is told."""
        for watcher in [each for found in self._watchers.values() for each in found]:
            if why_ended(view.snapshot, watcher.key, now_us):
                watcher.revoked = True
                watcher.wake()

    def _ask(self) -> None:
        cursor = ""
        while self._watchers:
            try:
                target = f"/internal/changes?cursor={cursor}"
                answer = self._client.call("GET", target, account_id=OPERATOR, timeout_s=_TIMEOUT_S)
                found = msgspec.json.decode(answer.body(), type=_Changes)
            except (ApiUnavailable, msgspec.DecodeError) as ex:
                log.warning("changes_unknown", error=str(ex))
                gevent.sleep(_RETRY_S)
                cursor = ""
                continue
            cursor = found.cursor
            for job_id in list(self._watchers) if found.all else found.jobs:
                for watcher in self._watchers.get(job_id, ()):
                    watcher.wake()
