"""Ends what dead workers left: their requests become free errors, their leases are closed.

Every step may be repeated after a crash between any two: the lock proves the death again, the
centre keeps refusing grants, the last rows and the mark `ended` are one transaction.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from schemas.errors import SHAPES, Code, Outcome, Stage
from schemas.events import AnyEvent, Error, IncarnationClosed, LeaseClosed, Request
from services.backends.clock import Clock
from services.backends.lifecycle import crash_point
from services.backends.outbox import DiskFull
from services.backends.outbox_files import NotReadable, OutboxCorrupt, list_incarnations
from services.backends.outbox_seal import OpenWork, SealedOutbox, seal
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger, metric

SOURCE: Final = "reaper"
_RETRY_S: Final = 15.0
_NO_ACCOUNT: Final = "-"


class Budgets(Protocol):
    def start_closing(self, incarnation: str) -> list[str]:
        """From now on no grant reaches the incarnation; its open leases. Repeating is harmless.
        Raises `DatabaseUnavailable`."""

    def lease_owners(self, incarnation: str) -> dict[str, tuple[str, str]]:
        """(account id, key id) of its open leases. Raises `DatabaseUnavailable`."""


class Reaper:
    """`carried(incarnation)` tells what rows of files already removed left open. `removal` is
    held while files are read, so that what is carried and what is in files stay of one time."""

    def __init__(
        self,
        folder: Path,
        budgets: Budgets,
        clock: Clock,
        carried: Callable[[str], OpenWork],
        removal: threading.Lock,
    ) -> None:
        self._folder = folder
        self._budgets = budgets
        self._clock = clock
        self._carried = carried
        self._removal = removal
        self._done: set[str] = set()
        self._retry_at_s: dict[str, float] = {}
        self._log = get_logger()

    def run_once(self) -> int:
        """Looks at every incarnation of this host; returns how many requests it ended."""
        names = [files.incarnation for files in list_incarnations(self._folder)]
        self._done.intersection_update(names)
        self._retry_at_s = {k: v for k, v in self._retry_at_s.items() if k in names}
        ended = 0
        for name in names:
            if name in self._done or self._retry_at_s.get(name, 0.0) > self._clock.monotonic_s():
                continue
            try:
                with self._removal:
                    ended += self._reap(name)
            except (OutboxCorrupt, NotReadable, DiskFull, DatabaseUnavailable) as error:
                self._retry_at_s[name] = self._clock.monotonic_s() + _RETRY_S
                metric("tollgate_reap_errors_total").inc()
                self._log.error("reap_postponed", incarnation=name, error=str(error))
        return ended

    def _reap(self, incarnation: str) -> int:
        sealed = seal(self._folder, incarnation, self._carried(incarnation))
        if sealed is None:
            return 0
        try:
            crash_point("reaper.after_seal")
            ended = 0 if sealed.ended else self._end(sealed)
            crash_point("reaper.after_append")
            sealed.publish()
            crash_point("reaper.after_publish")
        finally:
            sealed.release()
        self._done.add(incarnation)
        return ended

    def _end(self, sealed: SealedOutbox) -> int:
        """After the seal, so that neither an event nor a grant comes in between."""
        leases = self._budgets.start_closing(sealed.incarnation)
        owners = self._budgets.lease_owners(sealed.incarnation)
        crash_point("reaper.after_closing")
        if sealed.lost:
            metric("tollgate_outbox_seq_gap_total").inc(sealed.lost)
            self._log.critical("outbox_rows_lost", incarnation=sealed.incarnation, n=sealed.lost)
        now_us = self._clock.now_us()
        events: list[AnyEvent] = []
        for request in sealed.open_requests():
            events.append(self._abandoned(request, sealed.work, now_us))
        ended = len(events)
        for lease_id in leases:  # no row names these, or the ledger has not come to their end
            if lease_id in owners:
                sealed.work.touch(lease_id, *owners[lease_id])
        for lease_id, lease in sealed.work.leases.items():
            events.append(
                LeaseClosed(
                    event_id=f"{lease_id}:lease_closed",
                    account_id=lease.account_id,
                    key_id=lease.key_id,
                    occurred_at=now_us,
                    source=SOURCE,
                    lease_id=lease_id,
                    events=lease.events,
                )
            )
        if not sealed.work.over:  # else it died between its last word and the mark behind it
            events.append(
                IncarnationClosed(
                    event_id=f"{sealed.incarnation}:closed",
                    account_id=_NO_ACCOUNT,
                    occurred_at=now_us,
                    source=SOURCE,
                )
            )
        sealed.append(events)
        metric("tollgate_reaped_total").inc(ended)
        self._log.warning(
            "incarnation_reaped",
            incarnation=sealed.incarnation,
            requests=ended,
            leases=len(sealed.work.leases),
        )
        return ended

    def _abandoned(self, request: Request, work: OpenWork, now_us: int) -> Error:
        """The free terminal of a request whose worker died: what the request said, cost nothing."""
        return Error(
            event_id=f"{request.request_id}:error",
            account_id=request.account_id,
            key_id=request.key_id,
            occurred_at=now_us,
            source=SOURCE,
            request_id=request.request_id,
            lease_id=request.lease_id,
            lease_seq=work.next_lease_seq(request),
            status=SHAPES[Code.ABANDONED].status,
            outcome=Outcome.ABANDONED,
            code=Code.ABANDONED,
            stage=Stage.GATEWAY,
            message="the gateway stopped while it served this request",
            dialect=request.dialect,
            path=request.path,
            model=request.model,
            group=request.group,
            price_version=request.price_version,
            stream=request.stream,
            session_id=request.session_id,
            agent_id=request.agent_id,
            client=request.client,
            tags=request.tags,
            hold_nano=request.hold_nano,
        )
