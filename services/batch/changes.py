"""What changed just now, for everybody who watches: one reader of the table, many listeners.

The edge holds the watchers' connections and asks here, with one call per worker that waits until
something has changed. A change that is told twice does no harm.
"""

import threading
import time
from collections import OrderedDict, deque
from typing import Final, NamedTuple

from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.jobs import Jobs
from services.backends.telemetry import get_logger
from services.core.ids import uuid7_hex

_POLL_S: Final = 0.1
_IDLE_S: Final = 30.0
_BACK: Final = 500  # rows may become visible out of order: as many are looked at again
_KEPT: Final = 20_000
_PAGE: Final = 5_000


class Changes(NamedTuple):
    """`cursor` to ask from next; `jobs` that changed; `all` when it cannot be told which."""

    cursor: str
    jobs: list[str]
    all: bool


class ChangeFeed:
    """Reads while somebody listens."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._run = uuid7_hex()
        self._condition = threading.Condition()
        self._recent: deque[str] = deque(maxlen=_KEPT)
        self._total = 0
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._top = 0
        self._asked_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        fresh = False
        while not stop.wait(_POLL_S):
            if time.monotonic() - self._asked_s > _IDLE_S:
                fresh = False
                continue
            try:
                if not fresh:  # nobody listened: what happened meanwhile is asked for by itself
                    self._top, fresh = self._jobs.last_change(), True
                self._read()
            except DatabaseUnavailable as ex:
                get_logger().warning("changes_not_read", error=str(ex))
        with self._condition:
            self._condition.notify_all()

    def wait(self, cursor: str, seconds: float) -> Changes:
        """What changed behind `cursor` (empty: from now on), as soon as something has."""
        self._asked_s = time.monotonic()
        run, _, number = cursor.partition(".")
        with self._condition:
            if run != self._run or not number.isdecimal():
                return Changes(self._cursor(), [], True)
            at = int(number)
            self._condition.wait_for(lambda: self._total > at, seconds)
            missed = self._total - at
            if missed > len(self._recent) or missed < 0:
                return Changes(self._cursor(), [], True)
            found = list(self._recent)[len(self._recent) - missed :] if missed else []
            return Changes(self._cursor(), found, False)

    def _cursor(self) -> str:
        return f"{self._run}.{self._total}"

    def _read(self) -> None:
        rows = self._jobs.changes(max(0, self._top - _BACK), _PAGE)
        new = [row for row in rows if row[0] not in self._seen and row[0] > self._top - _BACK]
        if not new:
            return
        for number, _ in new:
            self._seen[number] = None
        while len(self._seen) > 2 * _PAGE:
            self._seen.popitem(last=False)
        self._top = max(self._top, new[-1][0])
        with self._condition:
            self._recent.extend(job_id for _, job_id in new)
            self._total += len(new)
            self._condition.notify_all()
