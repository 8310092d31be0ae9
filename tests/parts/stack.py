"""The whole program as its user starts it: `tollgate up` on a fresh data folder, with the
simulated provider behind it.

Every fault of the provider has a group of its own (`fault-...`) whose channels reach the provider
through a base URL that carries the fault, so that the models stay the priced ones and the bodies
stay untouched.
"""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from schemas.config import Config
from services.backends import settings
from services.backends.query_client import QueryClient, QueryFailed, QueryUnavailable
from services.cli import bootstrap
from services.core.keys import sha256_hex
from services.core.money import parse_usd
from services.meter.reconcile import reconcile
from services.meter.reconcile_report import Report
from tests.parts.ports import free_port
from tests.parts.postgres import postgres_url
from tests.parts.sim import Sim

ROOT = Path(__file__).parent.parent.parent
LAYOUT = ROOT / "compose" / "tollgate.toml"
TOLLGATE = Path(sys.executable).parent / "tollgate"
READY_S = 60.0
UPSTREAM_SECRET = "sk-upstream-9f8e7d6c5b4a"  # what the channels send, never a client
DIALECTS = ("anthropic", "chat", "responses")
FAULTS = (
    *(f"error-{status}" for status in (400, 401, 403, 404, 500, 502, 503)),
    "429-7",
    "529",
    "too-long",
    "200-error-body",
    "cut-mid-stream",
    "error-mid-stream",
    "error-mid-stream-90",
    "cut-after-finish",
    "close-connect",
    "empty",
    "no-usage",
    "truncated-json",
    "bad-json",
    "huge-usage",
    "redirect",
    "gzip",
    "ping-20",
    "slow-300",
    "stall-60",
    "flaky-2",
    "stall-first",
    "hang-head",
)
# The same faults on channels of their own, for tests that must not meet a channel that rests.
LANES = {
    "sdk": ("error-400", "error-404", "429-7", "error-500", "cut-mid-stream"),
    "cli": ("cut-mid-stream",),
    "wire": ("error-401", "error-403"),
}


def price_data(vendor: str) -> dict[str, dict[str, str]]:
    """model -> class -> USD per million, from the product's price data file."""
    raw = tomllib.loads((ROOT / "schemas" / "prices" / f"{vendor}.toml").read_text())
    return {row["model"]: row["usd_per_million"] for row in raw["models"]}


def _provider_prices() -> dict[str, dict[str, str]]:
    """The price file of the provider, also under the forms in which clients write a model."""
    table = {**price_data("anthropic"), **price_data("openai")}
    for name, prices in list(table.items()):
        table[re.sub(r"(?<=\d)-(?=\d)", ".", name)] = prices
    table["claude-haiku-4-5-20251001"] = table["claude-haiku-4-5"]
    return table


def _channels(sim_url: str) -> list[dict]:
    models = {d: list(price_data("anthropic" if d == "anthropic" else "openai")) for d in DIALECTS}

    def channel(name: str, dialect: str, group: str, path: str = "", **more) -> dict:
        where = {"name": f"{name}-{dialect}", "dialect": dialect, "base_url": sim_url + path}
        return {
            **where,
            "credential": "env:SIM_KEY",
            "models": models[dialect],
            "groups": [group],
            **more,
        }

    out = [channel("narrow", "chat", "narrow", models=["gpt-5-mini"])]
    for d in DIALECTS:
        out.append(channel("main", d, "default"))
        out.append(channel("slow", d, "slow", "/fault/sim-stall-3"))
        out.append(channel("paced", d, "slow-3", "/fault/sim-slow-3"))
        out.append(channel("slow-long", d, "slow-long", "/fault/sim-stall-20"))
        out.append(channel("absurd", d, "absurd", "/fault/sim-huge-usage-10000000000"))
        out.append(channel("uncounted", d, "uncounted", count_tokens=False))
        for lane, faults in LANES.items():
            for fault in faults:
                group = f"{lane}-{fault}"
                out.append(channel(group, d, group, f"/fault/sim-{fault}"))
        quick = {"idle_timeout_s": 1.5, "first_byte_timeout_s": 1.0, "total_timeout_s": 2.0}
        for fault in FAULTS:
            limits = quick if fault.startswith(("stall", "hang")) else {}
            out.append(channel(f"f-{fault}", d, f"fault-{fault}", f"/fault/sim-{fault}", **limits))
            out.append(
                channel(
                    f"a-{fault}", d, f"over-{fault}", f"/fault/sim-{fault}", priority=9, **limits
                )
            )
            out.append(channel(f"b-{fault}", d, f"over-{fault}"))
        closed = {"base_url": f"http://127.0.0.1:{free_port()}", "priority": 9}
        out.append({**channel("a-closed", d, "over-closed"), **closed})
        out.append(channel("b-closed", d, "over-closed"))
    return out


def _toml(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def write_config(path: Path, sections: dict[str, dict], channels: list[dict]) -> None:
    """`sections` by name; the groups are those that the channels name."""
    lines = []
    for name, fields in sections.items():
        lines += [f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in fields.items())]
    for channel in channels:
        lines += ["[[channels]]", *(f"{k} = {_toml(v)}" for k, v in channel.items())]
    for group in sorted({g for channel in channels for g in channel["groups"]}):
        lines += ["[[groups]]", f"name = {_toml(group)}"]
    path.write_text("\n".join(lines) + "\n")


def _variables(sections: dict[str, dict]) -> dict[str, str]:
    """`TOLLGATE_SECTION__NAME` of every value."""
    return {
        f"TOLLGATE_{section}__{name}".upper(): str(value)
        for section, fields in sections.items()
        for name, value in fields.items()
    }


class Stack:
    """A running Tollgate. `sections` are those of the configuration file; with a `layout`, the file
    of an installation, they are set over that file by environment."""

    def __init__(
        self, folder: Path, sections: dict[str, dict] | None = None, layout: Path | None = None
    ) -> None:
        self.data_dir = folder / "data"
        self.config_file = folder / "tollgate.toml"
        prices = folder / "prices.json"
        prices.write_text(json.dumps(_provider_prices()))
        self.sim = Sim(folder / "sim.log", "--prices", str(prices))
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        wanted = {"edge": {"port": self.port, "ping_s": 0.5, "workers": 2}}
        for name, fields in (sections or {}).items():
            wanted[name] = {**wanted.get(name, {}), **fields}
        self.variables: dict[str, str] = {}
        if layout is None:
            write_config(self.config_file, wanted, _channels(self.sim.base_url))
        else:
            self.variables = _variables(wanted)
            write_config(self.config_file, {}, _channels(self.sim.base_url))
            text = self.config_file.read_text()
            self.config_file.write_text(f"{layout.read_text()}\n{text}")
        self._keys: dict[str, str] = {}
        self._books: bootstrap.Books | None = None
        self.output = folder / "up.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and returns once it is ready."""
        with self.output.open("ab") as log:
            command = [TOLLGATE, "up", *self._where()]
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log
            )
        self.pid = self._process.pid
        deadline = time.monotonic() + READY_S
        while self._status("/readyz") != 200:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"not ready:\n{self.output.read_text()[-4000:]}")
            time.sleep(0.1)

    def _where(self) -> list[str]:
        return ["--config", str(self.config_file), "--data-dir", str(self.data_dir)]

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")}
        return {**kept, "SIM_KEY": UPSTREAM_SECRET, **self.variables}

    def _status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.base_url + path, timeout=2) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def stop(self) -> int:
        """Stops everything, the provider too; the exit code of the program."""
        try:
            return self.stop_tollgate()
        finally:
            self.sim.stop()

    def stop_tollgate(self) -> int:
        """SIGTERM, which is the same as a user's Ctrl-C; the exit code."""
        code = 0
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(40)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            self._process = None
        return code

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One `tollgate` command on this installation."""
        group, *rest = arguments
        done = subprocess.run(
            [TOLLGATE, group, *rest, *self._where()],
            cwd=ROOT,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"tollgate {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def new_key(
        self, group: str = "default", usd: str = "100", quota: str | None = None, account: str = ""
    ) -> str:
        """A key of `account`, else of a new one with `usd` in its wallet. Written straight into
        the catalog, as `tollgate account` and `tollgate key` do, for the sake of the time."""
        books = self._open_books()
        owner = account or self.new_account(usd)
        quota_nano = parse_usd(quota) if quota else None
        return books.catalog.create_key(owner, "test", group, quota_nano)[1]

    def new_account(self, usd: str = "100") -> str:
        """The id of a new account with `usd` in its wallet."""
        books = self._open_books()
        account = books.catalog.create_account(f"test-{uuid.uuid4().hex[:10]}")
        if usd != "0":
            books.wallets.move(account.id, "topup", parse_usd(usd), "", "test")
        return account.id

    def revoke(self, secret: str) -> None:
        """As `tollgate key revoke` does."""
        catalog = self._open_books().catalog
        digest = sha256_hex(secret)
        everyones = catalog.keys()
        (key,) = [each for each in everyones if each.secret_sha256 == digest]
        catalog.revoke_key(key.id)

    def _open_books(self) -> bootstrap.Books:
        if self._books is None:
            self._books = bootstrap.open_books(self.config)
        return self._books

    @functools.cached_property
    def config(self) -> Config:
        """What its processes read."""
        return settings.load(self.config_file, self.variables, data_dir=str(self.data_dir))

    def key(self, group: str = "default") -> str:
        """The one key that the tests share for a group."""
        if group not in self._keys:
            self._keys[group] = self.new_key(group)
        return self._keys[group]

    def get(self, path: str, key: str):
        asked = urllib.request.Request(self.base_url + path, headers={"x-api-key": key})
        with urllib.request.urlopen(asked, timeout=10) as reply:
            return json.load(reply)

    def usage_rows(self, key: str) -> list[dict]:
        """Every row of `GET /v1/usage` for the key's account, newest first."""
        rows: list[dict] = []
        cursor = ""
        while True:
            page = self.get(f"/v1/usage?limit=1000{cursor}", key)
            rows += page["data"]
            if not page.get("next_cursor"):
                return rows
            cursor = f"&cursor={page['next_cursor']}"

    def wait_for_row(self, request_id: str, key: str, timeout_s: float = 30.0) -> dict:
        """The row of one request, once the analytics part has it."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = [row for row in self.usage_rows(key) if row["request_id"] == request_id]
            if rows:
                assert len(rows) == 1, rows
                return rows[0]
            assert time.monotonic() < deadline, f"no row of {request_id} in {timeout_s} s"
            time.sleep(0.1)

    def wait_for_rows(self, count: int, key: str, timeout_s: float = 30.0) -> list[dict]:
        deadline = time.monotonic() + timeout_s
        while len(rows := self.usage_rows(key)) < count:
            assert time.monotonic() < deadline, f"{len(rows)} of {count} rows: {rows}"
            time.sleep(0.1)
        return rows

    def sql(self, statement: str) -> list[dict]:
        """The rows by column, asked of the running analytics as `tollgate sql` asks them."""
        found = QueryClient(self.config).sql(statement)
        return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]

    def reconcile(self) -> Report:
        """What `tollgate reconcile` tells while everything runs: exit code 0 means that every part
        tells the same."""
        self.wait_for_analytics()  # else their engine would be opened in this process
        return reconcile(self.config)

    def wait_for_analytics(self) -> None:
        """The edge is ready without them."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                QueryClient(self.config).health()
                return
            except (QueryUnavailable, QueryFailed):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def started(stack: Stack):
    """For a fixture: the stack, running; afterwards everything that went through it must add up
    and it must stop by itself."""
    try:
        stack.start()
        stack.wait_for_analytics()
        yield stack
        told = stack.reconcile()
        assert told.exit_code == 0, told.text()
    finally:
        code = stack.stop()
    assert code == 0, stack.output.read_text()[-4000:]


@pytest.fixture(scope="package")
def stack(tmp_path_factory):
    """The embedded default: local bus, SQLite, chDB. It ends with the folder of tests that takes it
    into its `conftest.py`: what stands idle still costs a tenth of a CPU."""
    yield from started(Stack(tmp_path_factory.mktemp("stack")))


@pytest.fixture(scope="module")
def cluster_stack(tmp_path_factory, kafka_broker):
    """The same program on Kafka and PostgreSQL, for the few files that want both: the file of the
    container layout, addresses by environment as its containers have them."""
    addresses = {
        "edge": {"host": "127.0.0.1"},
        "bus": {
            "bootstrap": kafka_broker.bootstrap,
            "topic_prefix": f"stack{uuid.uuid4().hex[:6]}-",
        },
        "database": {"url": postgres_url(migrated=False)},
    }
    yield from started(Stack(tmp_path_factory.mktemp("cluster"), addresses, LAYOUT))
