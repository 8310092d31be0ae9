"""The batch service as a process of its own, on a database of the test and the simulated provider;
called as the edge calls it. Dies at named points when told to."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import msgspec
import psutil
from sqlalchemy import select

from schemas import config as shape
from schemas import events
from services.backends import price_files, settings
from services.backends.http.private_client import ApiUnavailable, PrivateClient
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import open_engine, read
from services.backends.sql.job_records import Job
from services.backends.sql.job_rows import as_job
from services.backends.sql.job_tables import attempt, job
from services.backends.sql.tables import sql_outbox
from services.backends.sql.wallets import Wallets
from services.core.jobs import TERMINAL

ROOT = Path(__file__).parent.parent.parent
CLAIM_S = 2.0
WALLET_NANO = 1_000_000_000_000


class BatchHouse:
    """One data folder. `start` and `kill` the service at will; `call` it as the edge does."""

    def __init__(self, folder: Path, database_url: str, sim_url: str, **batch) -> None:
        self.folder = folder
        self.crashes = folder / "crash"
        self.crashes.mkdir(parents=True)
        self.channels = [
            self._channel("videos", "openai-videos", sim_url + "/v1", ["sim-video"]),
            self._channel("images", "openai", sim_url + "/v1", ["sim-image", "sim-speech"]),
            self._channel(
                "generic",
                f"http:{ROOT / 'tests/parts/simulated.toml'}",
                sim_url + "/generic/v1",
                ["veo-3.1"],
            ),
        ]
        self._environ = {
            **os.environ,
            "TOLLGATE_DATA_DIR": str(folder),
            "TOLLGATE_DATABASE__URL": database_url,
            "TOLLGATE_CRASH_FOLDER": str(self.crashes),
            "TOLLGATE_BATCH__CLAIM_S": str(CLAIM_S),
            "TOLLGATE_BATCH__POLL_S": "0.05",
            "TOLLGATE_BATCH__UNKNOWN_GRACE_S": "1",
            **{f"TOLLGATE_BATCH__{name.upper()}": str(value) for name, value in batch.items()},
            "PYTHONPATH": str(ROOT),
        }
        self._file = folder / "tollgate.toml"
        self._file.write_text(_toml(self.channels))
        self.config = settings.load(self._file, self._environ)
        self.engine = open_engine(database_url, folder)
        catalog = Catalog(self.engine, settings.load_secret(folder))
        catalog.sync(self.config.channels, [], price_files.load(), time.time_ns() // 1000)
        self.catalog = catalog
        self.newcomer()
        self.budgets = Budgets(self.engine)
        self.client = PrivateClient(self.config, "unix:run/batch.sock")
        self.processes: list[subprocess.Popen] = []

    def newcomer(self) -> None:
        """An account of its own with a key and money; what is read of jobs is its from now on."""
        self.account = self.catalog.create_account(uuid.uuid4().hex)
        self.key, self.secret = self.catalog.create_key(self.account.id, "first")
        Wallets(self.engine).move(self.account.id, "topup", WALLET_NANO, "start")

    @staticmethod
    def _channel(name, provider, base_url, models):
        return shape.Channel(
            name=name,
            provider=provider,
            base_url=base_url,
            models=models,
            credential="env:TOLLGATE_TEST_UPSTREAM",
        )

    # -- the process ----------------------------------------------------------------------------

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "services.cli.main", "--config", str(self._file), "batch"]
        log = (self.folder / "batch.out").open("ab")
        made = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log, cwd=ROOT)
        self.processes.append(made)
        self.until(lambda: made.poll() is not None or self.answers(), "the service to answer")
        return made

    def second(self) -> None:
        """Another process on the same database, which answers the calls from now on."""
        self._environ["TOLLGATE_BATCH__SOCKET"] = "run/second.sock"
        self.client = PrivateClient(self.config, "unix:run/second.sock")
        self.start()

    def stopped(self) -> list[subprocess.Popen]:
        """The processes that stand still."""
        return [each for each in self.processes if psutil.Process(each.pid).status() == "stopped"]

    def log(self) -> str:
        """What the processes have logged."""
        return (self.folder / "batch.out").read_text()

    def running(self) -> subprocess.Popen:
        """The process that runs; started when none does."""
        if self.processes and self.processes[-1].poll() is None:
            return self.processes[-1]
        return self.start()

    def answers(self) -> bool:
        try:
            return self.call("GET", "/internal/health")[0] == 200
        except ApiUnavailable:
            return False

    def arm(self, point: str) -> Path:
        """The next process that comes to `point` dies there."""
        path = self.crashes / point
        path.touch()
        return path

    def close(self) -> None:
        for each in self.processes:
            if each.poll() is None:
                each.send_signal(signal.SIGKILL)
            each.wait()
        self.engine.dispose()

    # -- calls ----------------------------------------------------------------------------------

    def call(self, method, path, body=None, *, key=None, headers=None, raw=False):
        key = key or self.key
        answer = self.client.call(
            method,
            path,
            account_id=key.account_id,
            key_id=key.id,
            headers={"x-tollgate-origin": "http://gateway.test", **(headers or {})},
            body=None if body is None else json.dumps(body).encode(),
        )
        data = answer.body()
        self.headers = answer.headers
        return answer.status, data if raw or not data else json.loads(data)

    def submit(self, model, external_id="", **given):
        """The job's object. With an external id it is submitted again when the service dies."""
        body = {"model": model, "input": {"prompt": "a fox", **given}, "external_id": external_id}
        try:
            status, made = self.call("POST", "/v1/jobs", body)
        except ApiUnavailable:
            if not external_id:
                raise
            self.processes[-1].wait(20)
            self.start()
            status, made = self.call("POST", "/v1/jobs", body)
        assert status in (200, 202), made
        return made

    def job(self, job_id):
        return self.call("GET", f"/v1/jobs/{job_id}")[1]

    def wait_for(self, job_id, timeout_s=40.0):
        """The job once it has ended."""
        found = {}

        def ended() -> bool:
            nonlocal found
            found = self.job(job_id)
            return found["completed_at"] is not None

        self.until(ended, f"{job_id} to end", timeout_s)
        return found

    def until(self, done, what, timeout_s=40.0):
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if done():
                    return
            except ApiUnavailable:
                pass
            log = self.folder / "batch.out"
            assert time.monotonic() < deadline, f"waited for {what}: {log.read_text()[-2000:]}"
            time.sleep(0.05)

    # -- the truth ------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        query = select(job).where(job.c.account_id == self.account.id)
        return read(self.engine, lambda c: [as_job(row) for row in c.execute(query)])

    def attempts(self):
        return read(self.engine, lambda c: c.execute(select(attempt)).all())

    def events(self) -> list[events.AnyEvent]:
        query = (
            select(sql_outbox.c.body)
            .where(sql_outbox.c.account_id == self.account.id)
            .order_by(sql_outbox.c.id)
        )
        bodies = read(self.engine, lambda c: c.execute(query).scalars().all())
        return [events.decode(bytes(body)) for body in bodies]

    def check(self) -> None:
        """Every job has ended; each has one request, one terminal, one end of its lease; it is
        charged exactly when it is completed; nothing was created twice."""
        seen = self.events()
        per_request = Counter(
            (type(each).__name__, each.request_id)
            for each in seen
            if isinstance(each, events.Request | events.Usage | events.Error)
        )
        closed = Counter(each.lease_id for each in seen if isinstance(each, events.LeaseClosed))
        for each in self.jobs():
            assert each.phase in TERMINAL, each
            assert per_request["Request", each.request_id] == 1
            usages = per_request["Usage", each.request_id]
            assert usages + per_request["Error", each.request_id] == 1
            assert usages == (each.phase == "completed")
            assert (each.charged_nano > 0) == (each.phase == "completed")
            assert closed[each.lease_id] == 1
            assert each.next_at is None
        charged = {e.request_id: e.charged_nano for e in seen if isinstance(e, events.Usage)}
        assert charged == {
            each.request_id: each.charged_nano for each in self.jobs() if each.charged_nano
        }


def _toml(channels) -> str:
    lines = []
    for each in channels:
        lines.append("[[channels]]")
        for name in ("name", "provider", "base_url", "credential"):
            lines.append(f"{name} = {json.dumps(getattr(each, name))}")
        lines.append(f"models = {msgspec.json.encode(each.models).decode()}")
    return "\n".join(lines) + "\n"
