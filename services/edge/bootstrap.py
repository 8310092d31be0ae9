"""Builds one edge worker. The only file of the edge that names concrete adapters.

Imported before the fork, run in the worker after gevent's patches: connections, files, locks and
watchers must not be shared with another process."""

import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar, cast

from gevent import monkey
from gevent.threadpool import ThreadPool
from gunicorn.arbiter import Arbiter
from sqlalchemy import Engine

from schemas.config import Config
from services.backends import bonus_ladder, lifecycle, structs, telemetry
from services.backends.admin_key import AdminKey
from services.backends.clock import WorkerClock
from services.backends.http.private_client import PrivateClient
from services.backends.line_ticket import tickets
from services.backends.outbox import Outbox, OutboxFailed
from services.backends.query_client import QueryClient
from services.backends.settings import load_secret, under
from services.backends.sql import revision
from services.backends.sql.accounts import Accounts
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog
from services.backends.sql.catalog_readers import CatalogReaders
from services.backends.sql.engine import open_engine
from services.backends.sql.rates import Rates
from services.backends.sql.wallets import Wallets
from services.core.addresses import networks
from services.edge.app import PathPrefix, create_routes
from services.edge.attempts import Upstreams
from services.edge.counters import Counters
from services.edge.elastic import HoldPolicy
from services.edge.exchange import Exchange
from services.edge.jobs.stream_token import StreamTokens
from services.edge.journal import Journal
from services.edge.leases import LeaseBook
from services.edge.lines import Lines
from services.edge.manage.desk import Desk
from services.edge.rates import RateBook
from services.edge.record import Recorder, new_incarnation
from services.edge.snapshot import Snapshots
from services.edge.upstream import UpstreamPool
from services.edge.worker import Worker

T = TypeVar("T")

_sleep: Final = monkey.get_original("time", "sleep")


class Inline:
    """PostgreSQL's driver waits cooperatively in a patched process: no thread is needed."""

    def apply(self, fn: Callable[..., T], args: tuple[Any, ...] = ()) -> T:
        return fn(*args)


class OneThread:
    """Off the hub, one call after the other. What a call raises is raised here: gevent's own pool
    prints a traceback for it first, and a refused grant is no news."""

    def __init__(self) -> None:
        self._pool = ThreadPool(1)

    def apply(self, fn: Callable[..., T], args: tuple[Any, ...] = ()) -> T:
        value, error = self._pool.apply(_outcome, (fn, args))
        if error is not None:
            raise error
        return cast(T, value)


def _outcome(fn: Callable[..., T], args: tuple[Any, ...]) -> tuple[T | None, Exception | None]:
    try:
        return fn(*args), None
    except Exception as ex:
        return None, ex


class EdgeApp:
    """The WSGI callable, with the two methods that the server calls when it stops."""

    def __init__(self, worker: Worker, desk: Desk, sync: ThreadPool) -> None:
        self._worker = worker
        self._sync = sync
        self._app = PathPrefix(create_routes(worker, desk))

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        return self._app(environ, start_response)

    def cut(self) -> None:
        """The grace period is over while answers still run."""
        self._worker.cut()

    def close(self) -> None:
        """After the last answer: money back, outbox closed."""
        self._worker.stopping = True
        self._sync.join()
        self._worker.stop()


def create_app(config: Config) -> EdgeApp:
    """One worker's application, its outbox open and its poll loops running."""
    structs.describe_all()
    telemetry.configure("edge", config)
    clock = WorkerClock()
    engine = open_engine(config.database.url, under(config, "."))
    _require_schema(engine)
    # SQLite blocks: one thread keeps it off the hub.
    threads: Any = OneThread() if config.database.url.startswith("sqlite") else Inline()
    incarnation = new_incarnation()
    budgets = Budgets(engine)
    budgets.open_incarnation(incarnation, "edge", socket.gethostname())
    outbox = Outbox.create(under(config, config.outbox.path), incarnation, config.outbox, clock)
    counters = Counters()
    holds = HoldPolicy(clock, config.edge.writeoff_limit_nano)
    active: set[Exchange] = set()
    recorder = Recorder(Journal(outbox, counters, active), clock, counters, holds)
    leases = LeaseBook(
        budgets,
        incarnation,
        threads,
        clock,
        counters,
        wait_s=config.edge.admission_wait_s,
        on_closed=recorder.lease_closed,
    )
    recorder.leases = leases
    rates = Rates(engine)
    rates.sweep()
    secret = load_secret(config.data_dir)
    catalog = Catalog(engine, secret)
    readers = CatalogReaders(engine)
    snapshots = Snapshots(
        catalog,
        threads,
        clock,
        config.edge.catalog_grace_s,
        networks(config.edge.trusted_proxies),
    )
    worker = Worker(
        config=config,
        clock=clock,
        outbox=outbox,
        snapshots=snapshots,
        leases=leases,
        rates=RateBook(rates, incarnation, threads, clock, counters),
        recorder=recorder,
        holds=holds,
        upstreams=Upstreams(UpstreamPool(), clock, config.edge),
        accounts=Accounts(engine),
        queries=QueryClient(config),
        batch=PrivateClient(config, config.edge.batch_url),
        lines=Lines(tickets(secret), BatchLines(engine), snapshots, threads, clock, incarnation),
        stream_tokens=StreamTokens(secret, snapshots, clock),
        threads=threads,
        counters=counters,
        active=active,
        confirm=partial(readers.confirm, incarnation),
    )
    worker.start()
    sync = ThreadPool(1)
    sync.spawn(_sync_loop, worker, config.outbox.sync_interval_s)
    desk = Desk(
        catalog, Wallets(engine), readers, AdminKey(config.data_dir), bonus_ladder.load(config)
    )
    return EdgeApp(worker, desk, sync)


def _require_schema(engine: Engine) -> None:
    """On a schema older than this program the whole edge ends, with one line."""
    try:
        revision.require(engine)
    except revision.SchemaTooOld as ex:
        telemetry.get_logger().critical("schema_too_old", error=str(ex))
        lifecycle.exit_now(Arbiter.WORKER_BOOT_ERROR)


def _sync_loop(worker: Worker, interval_s: float) -> None:
    """Real thread: fsync on a timer. A failed fsync ends the process: what is on disk is unknown,
    and what was in flight is closed as abandoned, free, from the file."""
    while not worker.stopping:
        try:
            worker.outbox.sync()
        except OutboxFailed as ex:
            worker.die(str(ex))
        _sleep(interval_s)
