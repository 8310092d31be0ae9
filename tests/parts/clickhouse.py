"""ClickHouse for tests: chDB in this process, and its HTTP interface over chDB in another.

This process can hold one chDB folder, so its tests share a folder and have a database each."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from services.backends.clickhouse.client import ClickHouse
from tests.conftest import PARTS, part_missing

ROOT = Path(__file__).parent.parent.parent
CHDB = pytest.param("chdb", marks=pytest.mark.part("chdb"))
HTTP = pytest.param("clickhouse-http", marks=pytest.mark.part("clickhouse-http"))
_numbers = itertools.count(1)


class HttpFront:
    """`tests.parts.clickhouse_front` as a child process; its data and port survive `kill`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.version = ""
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        module = "tests.parts.clickhouse_front"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(self.folder), str(self.port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError("the ClickHouse front did not start")
        told = json.loads(line)
        self.port, self.version = told["port"], told["version"]

    def kill(self) -> None:
        """SIGKILL, as a machine that goes away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def arm(self, **faults: int) -> None:
        """`drop_insert_reply=n`, `refuse_insert=n`, `stall_insert_s=seconds` (once)."""
        requests.post(f"{self.url}/front/faults", json=faults, timeout=5).raise_for_status()

    def inserts(self) -> list[dict]:
        """`{"token", "fate"}` of every insert since the start."""
        return requests.get(f"{self.url}/front/inserts", timeout=5).json()


@pytest.fixture(scope="session")
def chdb_folder(tmp_path_factory):
    try:
        import chdb
    except ImportError as ex:
        part_missing("chdb", str(ex))
    PARTS["chdb"] = chdb.engine_version
    return tmp_path_factory.mktemp("chdb")


@pytest.fixture(scope="session")
def shared_front(tmp_path_factory):
    front = HttpFront(tmp_path_factory.mktemp("front") / "engine")
    try:
        front.start()
    except RuntimeError as ex:
        part_missing("clickhouse-http", str(ex))
    PARTS["clickhouse-http"] = front.version
    yield front
    front.kill()


@pytest.fixture
def own_front(tmp_path):
    """A front of the test's own, to be killed and started again."""
    front = HttpFront(tmp_path / "engine")
    try:
        front.start()
    except RuntimeError as ex:
        part_missing("clickhouse-http", str(ex))
    PARTS["clickhouse-http"] = front.version
    yield front
    front.kill()


@pytest.fixture
def database_name():
    return f"t{next(_numbers)}"


@pytest.fixture(params=[CHDB, HTTP])
def clickhouse(request, database_name):
    """An empty database, once on chDB and once through HTTP."""
    if request.param == "chdb":
        folder = request.getfixturevalue("chdb_folder")
        opened = ClickHouse("chdb:///engine", database_name, folder=folder)
    else:
        front = request.getfixturevalue("shared_front")
        opened = ClickHouse(front.url, database_name)
    yield opened
    opened.close()
