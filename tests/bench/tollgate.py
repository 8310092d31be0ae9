"""Tollgate as its user starts it: `tollgate up`, one edge worker, all durable and metered."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from importlib.metadata import version as installed
from pathlib import Path

import msgspec
import psutil

from schemas.events import TOPIC, decode
from services.backends.bus.local import LocalBus
from tests.bench.answers import Case
from tests.bench.gateways import ROOT, UPSTREAM_KEY, Gateway, channels
from tests.bench.process import family
from tests.parts.stack import write_config

PROGRAM = Path(sys.executable).parent / "tollgate"
CAUGHT_UP_S = 120.0
PARTITIONS = 6


class Billed(msgspec.Struct):
    """What the ledger says. `ratios`: hold over cost of each billed request, sorted."""

    usage_events: int
    free_events: int
    unfinished: int  # requests without a terminal
    charged_nano: int
    ratios: list[float]

    def ratio(self, quantile: float) -> float:
        return self.ratios[int(quantile * (len(self.ratios) - 1))] if self.ratios else 0.0


class Tollgate(Gateway):
    name = "tollgate"
    settings = (
        "`tollgate up`, 1 edge worker: key check, hold, two durable events per request, relay, "
        "ledger and embedded ClickHouse all running"
    )

    def __init__(self, streams_port: int) -> None:
        super().__init__()
        self._streams_port = streams_port

    def install(self) -> None:
        self.version = installed("tollgate")

    def start(self, folder: Path, upstream_port: int) -> None:
        self._config = folder / "tollgate.toml"
        self.data_dir = folder / "data"
        edge = {"port": self.port, "workers": 1}
        write_config(
            self._config,
            {"edge": edge, "bus": {"partitions": PARTITIONS}},
            [
                {**channel, "groups": ["default"]}
                for channel in channels(upstream_port, self._streams_port)
            ],
        )
        env = {"BENCH_UPSTREAM_KEY": UPSTREAM_KEY}
        self._spawn(folder, [str(PROGRAM), "up", "--quiet", *self._where()], env, "/readyz")
        self._cli("account", "create", "bench")
        self._cli("account", "topup", "bench", "1000000")
        made = self._cli("key", "create", "--account", "bench", "--name", "bench", "--json")
        self.key = json.loads(made)["key"]

    def _where(self) -> list[str]:
        return ["--config", str(self._config), "--data-dir", str(self.data_dir)]

    def _cli(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(PROGRAM), *arguments, *self._where()],
            cwd=ROOT,
            env={**os.environ, "BENCH_UPSTREAM_KEY": UPSTREAM_KEY},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"tollgate {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def headers(self, case: Case) -> dict[str, str]:
        return {"x-api-key": self.key, "anthropic-version": "2023-06-01"}

    def serving(self) -> list[psutil.Process]:
        return [each for each in self._family() if "tollgate: edge" in _title(each)]

    def behind(self) -> list[psutil.Process]:
        return [each for each in self._family() if "tollgate: edge" not in _title(each)]

    def worker(self) -> psutil.Process:
        """The one process that serves requests."""
        return next(each for each in self._family() if "tollgate: edge worker" in _title(each))

    def _family(self) -> list[psutil.Process]:
        return family(self.process.pid) if self.process else []

    def billed(self, expected: int) -> Billed:
        """What the ledger holds of this run, once it has `expected` bills or stands still."""
        deadline = time.monotonic() + CAUGHT_UP_S
        seen, since = -1, time.monotonic()
        while time.monotonic() < deadline:
            count = self._settled()
            if count != seen:
                seen, since = count, time.monotonic()
            elif count >= expected or time.monotonic() - since > 10:
                break
            time.sleep(0.3)
        return self._read_bills()

    def _settled(self) -> int:
        return int(self._sql("SELECT count(*) FROM settlement")[0][0])

    def _sql(self, statement: str) -> list[tuple]:
        file = self.data_dir / "tollgate.db"
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10) as connection:
            return connection.execute(statement).fetchall()

    def _read_bills(self) -> Billed:
        bills = dict(
            self._sql("SELECT request_id, charged_nano FROM settlement WHERE cost_nano > 0")
        )
        free = self._sql("SELECT count(*) FROM settlement WHERE cost_nano = 0")[0][0]
        holds = self._holds()
        ratios = sorted(holds[each] / cost for each, cost in bills.items() if each in holds)
        return Billed(
            usage_events=len(bills),
            free_events=free,
            unfinished=len(holds) - len(bills) - free,
            charged_nano=sum(bills.values()),
            ratios=ratios,
        )

    def _holds(self) -> dict[str, int]:
        """request id -> money held at admission, from the event log."""
        bus = LocalBus(self.data_dir / "bus.db", PARTITIONS)
        held = {}
        try:
            for partition, (first, following) in bus.bounds(TOPIC).items():
                if following == first:
                    continue
                for message in bus.read(TOPIC, partition, first, following - 1):
                    event = decode(message.value)
                    if type(event).__name__ == "Request":
                        held[event.request_id] = event.hold_nano
        finally:
            bus.close()
        return held


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
