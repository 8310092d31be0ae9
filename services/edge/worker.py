"""What one edge worker holds, and its poll loop."""

from collections.abc import Callable
from typing import Final

import gevent

from schemas.config import Config
from services.backends import lifecycle, telemetry
from services.backends.clock import Clock
from services.backends.heartbeat import alive
from services.backends.http.private_client import PrivateClient, is_healthy
from services.backends.outbox import DiskFull, Outbox, OutboxFailed, Sealed
from services.backends.query_client import QueryClient
from services.backends.sql.accounts import Accounts
from services.core.access import why_ended
from services.core.outcomes import BYTES_PER_TOKEN
from services.edge.attempts import Upstreams
from services.edge.counters import Counters
from services.edge.elastic import HoldPolicy
from services.edge.exchange import Exchange
from services.edge.jobs.stream_token import StreamTokens
from services.edge.leases import LeaseBook
from services.edge.lines import Lines
from services.edge.rates import RateBook
from services.edge.record import Recorder
from services.edge.snapshot import Snapshots, View
from services.edge.standing import Standings
from services.edge.threads import Threads

log = telemetry.get_logger()

POLL_LEASES_S: Final = 0.1
POLL_RATES_S: Final = 0.1
LOOK_S: Final = 0.5  # for keys whose time is over
COUNT_TOKENS_S: Final = 1.0
FLUSH_S: Final = 1.0
EXIT_OUTBOX: Final = 70


class Worker:
    """The dependencies of every resource, made once per process by `bootstrap`."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        outbox: Outbox,
        snapshots: Snapshots,
        leases: LeaseBook,
        rates: RateBook,
        recorder: Recorder,
        holds: HoldPolicy,
        upstreams: Upstreams,
        accounts: Accounts,
        queries: QueryClient,
        batch: PrivateClient,
        lines: Lines,
        stream_tokens: StreamTokens,
        threads: Threads,
        counters: Counters,
        active: set[Exchange],
        confirm: Callable[[int], None],
    ) -> None:
        self.config = config
        self.clock = clock
        self.outbox = outbox
        self.snapshots = snapshots
        self.leases = leases
        self.rates = rates
        self.recorder = recorder
        self.holds = holds
        self.upstreams = upstreams
        self.accounts = accounts
        self.standings = Standings(leases.figures, accounts, threads, clock)
        self.queries = queries
        self.batch = batch
        self.lines = lines
        self.stream_tokens = stream_tokens
        self.threads = threads
        self.counters = counters
        self._confirm = confirm
        self.stopping = False
        self.active = active
        # Called with the present time when the catalog has changed, and now and then: keys end.
        self.on_look: list[Callable[[View, int], None]] = [self._end_revoked]
        self._seen = snapshots.current
        self._look_s = 0.0
        self._confirmed = -1  # the catalog version that this worker said to act on

    def start(self) -> None:
        """Starts the poll loops; call in the worker, after the fork."""
        gevent.spawn(self._every, self.config.edge.poll_s, self._poll_catalog)
        gevent.spawn(self._every, POLL_LEASES_S, self.leases.poll)
        gevent.spawn(self._every, POLL_RATES_S, self.rates.poll)
        gevent.spawn(self._every, COUNT_TOKENS_S, self._count_tokens)
        gevent.spawn(self._every, FLUSH_S, self._show)

    def _show(self) -> None:
        """What `/metrics` tells of this worker."""
        telemetry.metric("tollgate_in_flight").set(len(self.active))
        telemetry.metric("tollgate_reserved_nano").set(self.leases.reserved_nano)
        telemetry.metric("tollgate_catalog_age_seconds").set(self.snapshots.age_s)
        self.counters.flush()

    def _count_tokens(self) -> None:
        """What running answers have used of their tokens per minute up to now."""
        for x in list(self.active):
            if x.permit is not None and x.permit.counts_tokens and x.answer is not None:
                x.permit.flowed(x.answer.output_bytes // BYTES_PER_TOKEN)

    def _poll_catalog(self) -> None:
        self.snapshots.poll()
        view = self.snapshots.current
        now_s = self.clock.monotonic_s()
        if view is not self._seen or now_s >= self._look_s:
            self._seen, self._look_s = view, now_s + LOOK_S
            for act in self.on_look:
                act(view, self.clock.now_us())
        if view.version != self._confirmed:
            self.threads.apply(self._confirm, (view.version,))
            self._confirmed = view.version

    def _end_revoked(self, view: View, now_us: int) -> None:
        """Running streams of keys that were taken away or are over end with an error frame; what
        was sent of them is due. What is still being admitted is refused, or ends at its first
        connection."""
        for x in list(self.active):
            if x.key is None or (x.requested and x.parsed is not None and not x.parsed.stream):
                continue
            reason = why_ended(view.snapshot, x.key, now_us)
            if reason:
                x.cut = reason
                if x.call is not None:
                    x.call.abort()

    def _every(self, interval_s: float, step: Callable[[], None]) -> None:
        failing = False
        while not self.stopping:
            try:
                step()
                failing = False
            except Sealed as ex:
                self.die(str(ex))
            except Exception:
                if not failing:  # once per outage, not once per round
                    log.exception("poll_failed")
                failing = True
            gevent.sleep(interval_s)

    def die(self, reason: str) -> None:
        """Without its outbox a worker can bill nothing: it ends at once; what it had in flight is
        closed as abandoned, free, from the file."""
        log.critical("outbox_gone", reason=reason)
        lifecycle.exit_now(EXIT_OUTBOX)

    def finished(self, x: Exchange) -> None:
        """A streamed exchange is over, whatever way it ended."""
        self.active.discard(x)
        if x.permit is not None:
            x.permit.end()
        assert x.channel is not None
        self.upstreams.done(x.channel)

    def cut(self) -> None:
        """The grace period is over: every answer still running ends now, with an error frame
        and free of charge, because ending it is our doing."""
        for x in list(self.active):
            if x.call is not None:
                x.call.abort()

    def not_ready(self) -> list[str]:
        """What keeps the first admitted request from being billed; empty when ready."""
        missing = []
        if self.stopping:
            missing.append("stopping")
        if not self.snapshots.fresh:
            missing.append("database")
        try:
            self.outbox.require_space()
        except (DiskFull, OutboxFailed) as ex:
            missing.append(str(ex))
        # On Kafka the ledger sink may run on another machine; the relay is always here.
        roles = ("relay", "ledger") if self.config.bus.kind == "local" else ("relay",)
        missing += [f"{role} not running" for role in roles if not alive(self.config, role)]
        return missing

    def batch_state(self) -> str:
        """Of the service that runs jobs and batches: ok | unavailable."""
        return "ok" if is_healthy(self.batch) else "unavailable"

    def stop(self) -> None:
        """After the last request: leases go back, the outbox says that nothing follows. When the
        centre is away it does not say so: what is open is then closed as after a death."""
        self.stopping = True
        ended = False
        try:
            ended = self.leases.close_all()
        except Exception:
            log.exception("not_given_back", what="leases")
        try:
            self.rates.close()
        except Exception:
            log.exception("not_given_back", what="rates")
        self.counters.flush()
        if ended:
            self.outbox.close()
        else:
            self.outbox.sync()
