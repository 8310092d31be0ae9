"""The engine of jobs in this process, on a database of the test, with upstreams that do what the
test says; nothing goes over a wire."""

import contextlib
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path

from sqlalchemy import event, exc

from schemas import config as shape
from services.backends import price_files, settings
from services.backends.clock import SystemClock
from services.backends.objects.folder import FolderStore
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.incarnations import BATCH
from services.backends.sql.job_claims import JobClaims
from services.backends.sql.job_ends import JobEnds
from services.backends.sql.jobs import INCARNATION, Jobs
from services.backends.sql.uploads import Uploads
from services.backends.sql.wallets import Wallets
from services.batch.admit import Admission, Ask
from services.batch.engine import JobEngine
from services.batch.lanes import Lanes
from services.batch.parts import Parts
from services.batch.providers.port import Submitted, Traits, Unsupported
from services.batch.typical import Typical
from services.batch.view import Views
from services.core.jobs import TERMINAL
from services.core.routing import Cooldowns


class Scripted:
    """An upstream: answers to creates, polls and look-ups in the order that the test gave, the last
    one for ever (a function is called with the order or task); counts what was asked."""

    kinds = ("image", "video")

    def __init__(self, name, *, create=(), poll=(), find=(), model="sim-video", **traits):
        self.name = name
        self.model = model
        self.traits = Traits(**{"poll_min_s": 0.05, "poll_max_s": 0.1, **traits})
        self.answers = {"create": list(create), "poll": list(poll), "find": list(find)}
        self.asked = defaultdict(list)

    def headers(self, channel):
        return {}

    def create(self, http, channel, order):
        return self._next("create", order) or Submitted(upstream_id=f"up-{order.client_ref}")

    def poll(self, http, channel, task):
        return self._next("poll", task)

    def cancel(self, http, channel, task):
        return Unsupported()

    def find(self, http, channel, order):
        return self._next("find", order) or Unsupported()

    def _next(self, what, given):
        self.asked[what].append(given)
        left = self.answers[what]
        if not left:
            return None
        found = left.pop(0) if len(left) > 1 else left[0]
        return found(given) if callable(found) else found


class StepsHouse:
    """Of `upstreams` with the same model the first is asked first. The engine runs between `start`
    and `stop`."""

    def __init__(self, engine, folder: Path, *upstreams: Scripted, **batch):
        given = {"poll_s": 0.05, "claim_s": 5.0, "unknown_grace_s": 0.1, **batch}
        named = {f"batch__{name}": value for name, value in given.items()}
        self.config = settings.load(None, {}, data_dir=str(folder), **named)
        self.engine, self.folder, clock = engine, folder, SystemClock()
        catalog = Catalog(engine, settings.load_secret(folder))
        channels = [
            shape.Channel(
                name=each.name,
                provider=each.name,
                base_url="http://upstream.test",
                models=[each.model],
                priority=-place,
            )
            for place, each in enumerate(upstreams)
        ]
        catalog.sync(channels, [], price_files.load(), time.time_ns() // 1000)
        self.account = catalog.create_account(uuid.uuid4().hex)
        self.key, _ = catalog.create_key(self.account.id, "first")
        Wallets(engine).move(self.account.id, "topup", 10**15, "start")
        budgets, writes = Budgets(engine), GroupedWrites(engine)
        budgets.open_incarnation(INCARNATION, BATCH, "-")
        self.parts = Parts(
            config=self.config,
            clock=clock,
            views=Views(catalog, clock),
            jobs=Jobs(writes, budgets),
            claims=JobClaims(writes, self.config.batch.claim_s),
            ends=JobEnds(writes),
            uploads=Uploads(engine),
            store=FolderStore(folder / "artifacts"),
            http=None,
            fetcher=None,
            providers={each.name: each for each in upstreams},
            cooldowns=Cooldowns(clock.monotonic_s),
            typical=Typical(),
            lanes=Lanes(self.config.batch.threads, clock.monotonic_s),
        )
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        engine = JobEngine(self.parts)
        self._threads = [
            threading.Thread(target=loop, args=(self._stop,)) for loop in (engine.run, engine.beat)
        ]
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()

    def submit(self, model="sim-video"):
        params = {"prompt": "a fox", "duration_seconds": 1}
        ask = Ask(model=model, params=params, source="/v1/jobs")
        return Admission(self.parts).submit(self.key, ask).job

    def until_ended(self, job_id, timeout_s=40.0):
        """The job once it has ended."""
        self.until(lambda: self.parts.jobs.get(job_id).phase in TERMINAL, timeout_s)
        return self.parts.jobs.get(job_id)

    @staticmethod
    def until(done, timeout_s=40.0):
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @contextlib.contextmanager
    def no_writes(self):
        """The database takes no writes of jobs while the block runs; yields those it refused."""
        refused = []

        def refuse(connection, cursor, statement, *rest):
            if statement.startswith(("UPDATE job", "INSERT INTO attempt", "UPDATE attempt")):
                refused.append(statement)
                raise exc.OperationalError(statement, {}, Exception("read only"))

        event.listen(self.engine, "before_cursor_execute", refuse)
        try:
            yield refused
        finally:
            event.remove(self.engine, "before_cursor_execute", refuse)
