"""ClickHouse over HTTP for tests: a child process that tests can kill and start again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from services.backends.clickhouse.client import ClickHouse

ROOT = Path(__file__).parent.parent.parent
CHDB = pytest.param("chdb", marks=pytest.mark.part("chdb"))
HTTP = pytest.param("clickhouse-http", marks=pytest.mark.part("clickhouse-http"))


def stop_merges(clickhouse) -> None:
    """From now on no copy of a row disappears by a merge, so that counting rows shows them."""
    for table in ("requests", "attempts"):
        clickhouse.command(
            f"ALTER TABLE {table} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1"
        )


def open_database(request, name: str) -> ClickHouse:
    """An empty database: on chDB or through HTTP, as the parameter of the asking fixture says."""
    if request.param == "chdb":
        folder = request.getfixturevalue("chdb_folder")
        return ClickHouse("chdb:///engine", name, folder=folder)
    return ClickHouse(request.getfixturevalue("shared_front").url, name)


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
