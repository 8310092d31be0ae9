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
from services.backends.http.private_client import ApiUnavailable, PrivateClient
from services.backends.identity import OPERATOR

_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 0.5

log = telemetry.get_logger()


class _Changes(msgspec.Struct):
    cursor: str
    jobs: list[str]
    all: bool


class JobFeed:
    """Asks while somebody watches. `watching` gives an event that is set at every change."""

    def __init__(self, client: PrivateClient) -> None:
        self._client = client
        self._watchers: dict[str, set[Event]] = defaultdict(set)
        self._asking: gevent.Greenlet | None = None

    @contextmanager
    def watching(self, job_id: str) -> Iterator[Event]:
        """For as long as a job is watched; `job_id` without its prefix."""
        event = Event()
        self._watchers[job_id].add(event)
        if self._asking is None or self._asking.dead:
            self._asking = gevent.spawn(self._ask)
        try:
            yield event
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

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
                for event in self._watchers.get(job_id, ()):
                    event.set()
