"""What the chaos of jobs runs on: edges, several batch processes on one database, the books beside
them, and a simulated provider. Whoever dies is started again."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from services.backends.http.private_client import ApiUnavailable, PrivateClient
from services.backends.sql.wallets import Wallets
from tests.parts.batch_house import ROOT, BatchHouse
from tests.parts.ports import free_port
from tests.parts.sim import Sim

READY_S = 120.0
STOP_S = 60.0
CALL_S = 60.0
TOPUP_NANO = 1_000_000_000_000_000
SETTINGS = {"gone_s": 1, "queue_max": 1_000_000, "watch_s": 30}


class Part(NamedTuple):
    """A process by its name, and how it is started."""

    name: str
    arguments: tuple[str, ...]
    environ: dict[str, str]


class JobsHouse(BatchHouse):
    """`hurt` kills a part, `look` starts the dead again; both and `call_at` from any thread.

    `processes` batch processes, each with an edge before it. `bootstrap` names a Kafka broker;
    `apart`: relay and ledger sinks are processes of their own."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        processes: int,
        *,
        bootstrap: str = "",
        apart: bool = False,
        **batch: float,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TOLLGATE_TEST_UPSTREAM", "upstream-secret")
        self.sim = Sim(folder / "sim.log", "--media-queue-ms", "10", "--media-run-ms", "100")
        super().__init__(folder / "data", database_url, self.sim.base_url, **{**SETTINGS, **batch})
        Wallets(self.engine).move(self.account.id, "topup", TOPUP_NANO, "chaos")
        if bootstrap:
            self._environ["TOLLGATE_BUS__KIND"] = "kafka"
            self._environ["TOLLGATE_BUS__BOOTSTRAP"] = bootstrap
        self._lock = threading.RLock()
        self._own = threading.local()
        self._ports: list[int] = []
        self.parts: dict[str, Part] = {}
        self.clients: list[PrivateClient] = []
        for number in range(1, processes + 1):
            self._add_pair(number)
        for name, roles in _books(apart or bool(bootstrap)):
            self._add(name, "meter", "--roles", roles)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.deaths = 0
        self.strange: list[str] = []  # ends that nobody has ordered

    def _add(self, name: str, *arguments: str, **environ: str) -> None:
        self.parts[name] = Part(name, arguments, environ)

    def _add_pair(self, number: int) -> None:
        socket = f"run/batch-{number}.sock"
        self._ports.append(free_port())
        self._add(
            f"edge {number}",
            "edge",
            TOLLGATE_EDGE__PORT=str(self._ports[-1]),
            TOLLGATE_EDGE__WORKERS="1",
            TOLLGATE_EDGE__BATCH_URL=f"unix:{socket}",
        )
        self._add(f"batch {number}", "batch", TOLLGATE_BATCH__SOCKET=socket)
        self.clients.append(PrivateClient(self.config, f"unix:{socket}"))

    # -- processes ------------------------------------------------------------------------------

    def start_all(self) -> None:
        for name in self.parts:
            self._start(name)
        for number in range(len(self._ports)):
            self.until(lambda number=number: self._answers(number), "an edge to answer", READY_S)

    def _start(self, name: str) -> None:
        part = self.parts[name]
        with (self.folder / "batch.out").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self._command(), *part.arguments],
                env={**self._environ, **part.environ},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "services.cli.main", "--config", str(self._file)]

    def pid(self, name: str) -> int:
        """The process of a part."""
        return self._running[name].pid

    def is_dead(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def port(self, number: int) -> int:
        """Where edge `number` listens."""
        return self._ports[number % len(self._ports)]

    def hurt(self, name: str) -> None:
        """SIGKILL to it and its workers; they are gone afterwards, and their ports are free."""
        with self._lock:
            process = self._running[name]
            with contextlib.suppress(psutil.NoSuchProcess):
                for each in psutil.Process(process.pid).children(recursive=True):
                    each.kill()
            process.kill()
            process.wait()

    def look(self) -> None:
        """What has died, by a kill or at a crash point, is started again."""
        with self._lock:
            for name, process in list(self._running.items()):
                if process.poll() is not None:
                    if process.returncode != -signal.SIGKILL:
                        self.strange.append(f"{name} ended by itself: {process.returncode}")
                    self.deaths += 1
                    self._start(name)

    def disarm(self) -> None:
        for order in self.crashes.iterdir():
            order.unlink()

    def stop_all(self) -> None:
        """In order; afterwards one meter with every role books what is left."""
        with self._lock:
            self.look()
            for name in self.parts:
                process = self._running.pop(name)
                process.terminate()
                code = process.wait(STOP_S)
                assert code == 0, f"{name} ended with {code}"
            self._add("meter", "meter")
            self._start("meter")

    def reconcile(self, wait_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command(), "reconcile", "--wait", str(wait_s)],
            env=self._environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
        self.sim.stop()
        super().close()

    # -- calls ----------------------------------------------------------------------------------

    def _answers(self, number: int) -> bool:
        with contextlib.suppress(ApiUnavailable):
            return self.call_at(number, "GET", "/v1/jobs?limit=1")[0] == 200
        return False

    def call_at(self, number: int, method: str, path: str, body: object = None):
        """Status and body of a client's call to edge `number`. Raises ApiUnavailable."""
        port = self.port(number)
        kept: dict[int, http.client.HTTPConnection] = self._own.__dict__
        connection = kept.pop(port, None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_S)
        sent = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, sent, {"x-api-key": self.secret})
            reply = connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as ex:
            connection.close()
            raise ApiUnavailable(str(ex)) from ex
        kept[port] = connection
        return reply.status, json.loads(data) if data else None

    def surely(self, number: int, method: str, path: str, body: object = None):
        """As often as it takes, at one edge after the other."""
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(ApiUnavailable):
                status, told = self.call_at(number, method, path, body)
                if status < 500:
                    return status, told
            assert time.monotonic() < deadline, f"nobody answers {method} {path}"
            number += 1
            time.sleep(0.05)


def _books(apart: bool) -> list[tuple[str, str]]:
    if apart:
        return [("relay", "relay"), ("ledger 1", "ledger"), ("ledger 2", "ledger")]
    return [("books", "relay,ledger")]
