"""A backup taken under traffic, restored elsewhere, reconciles and has every event it must."""

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.backends.backup import CannotBackUp, back_up
from services.backends.restore import CannotRestore, restore
from services.backends.settings import load
from services.backends.sql.tables import applied
from tests.parts.books import USD
from tests.parts.feature import wait_until
from tests.parts.plant import EMBEDDED, Plant

pytest_plugins = ["tests.parts.clickhouse_fixtures", "tests.parts.plant_fixture"]

ROOT = Path(__file__).parent.parent.parent


def _elsewhere(plant, folder: Path):
    """The same installation with another data folder."""
    return load(
        None,
        {},
        data_dir=str(folder),
        clickhouse__dsn=plant.config.clickhouse.dsn,
        clickhouse__database=f"{plant.config.clickhouse.database}_restored",
        bus__partitions=3,
    )


def _leased_nano(books) -> int:
    return sum(leased for _, _, leased in books.limits().values())


def _restored(plant, backup: Path, folder: Path) -> Plant:
    """The engine's folder is shared by all tests of a process: a database of its own stands for
    the empty one."""
    config = _elsewhere(plant, folder)
    aside = config.clickhouse.dsn
    config.clickhouse.dsn = "chdb:///clickhouse"
    restore(config, backup)
    config.clickhouse.dsn = aside
    return Plant(config)


@pytest.mark.part("chdb")
@pytest.mark.parametrize("plant", [EMBEDDED], indirect=True)
def test_a_backup_under_traffic_reconciles_when_restored(plant, tmp_path):
    plant.outbox.close()
    plant.config.outbox.rotate_bytes = 20_000  # files come and go meanwhile
    plant.outbox = plant._worker()
    plant.books.seq = 0
    written: list[str] = []
    stop = threading.Event()

    def traffic():
        lease = plant.books.lease(plant.books.account(100), 5 * USD)
        while not stop.is_set():
            events = lease.pair(input=10)
            if len(written) % 20 == 0:
                events.append(lease.close())
                plant.books.wallets.move(lease.account_id, "topup", 1000)
                lease = plant.books.lease(plant.books.account(100), 5 * USD)
            plant.write(events)
            written.append(events[1].event_id)
            time.sleep(0.002)

    worker = threading.Thread(target=traffic)
    backups = []
    with plant.working(["relay", "ledger"]):
        worker.start()
        for number in range(3):
            time.sleep(0.8)
            must_have = len(written)
            folder = tmp_path / f"backup{number}"
            manifest = back_up(plant.config, folder)
            backups.append((folder, written[:must_have]))
            assert {"books.db", "log.db", "files/secret.key"} <= set(manifest["files"])
        stop.set()
        worker.join()
    for number, (folder, must_have) in enumerate(backups):
        second = _restored(plant, folder, tmp_path / f"restored{number}")
        try:
            with second.working():
                wait_until(lambda books=second.books: _leased_nano(books) == 0, 60)
            second.catch_up()
            report = second.reconcile()
            assert report.exit_code == 0, report.text()
            taken = {row.event_id for row in second.books.rows(applied, applied.c.event_id)}
            assert set(must_have) <= taken
            assert second.books.dead() == []
            second.books.check()
        finally:
            second.clickhouse(f"DROP DATABASE {second.config.clickhouse.database}")
            second.close()
    plant.catch_up()
    assert plant.reconcile().exit_code == 0, "the living one is as it was"


@pytest.mark.part("chdb")
@pytest.mark.parametrize("plant", [EMBEDDED], indirect=True)
def test_what_cannot_be_backed_up_or_restored(plant, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(CannotBackUp, match="not empty"):
        back_up(plant.config, full)
    with pytest.raises(CannotRestore, match="no complete backup"):
        restore(_elsewhere(plant, tmp_path / "new"), full)
    good = tmp_path / "good"
    back_up(plant.config, good)
    with pytest.raises(CannotRestore, match="exists"):
        restore(plant.config, good)
    config = _elsewhere(plant, tmp_path / "new")
    config.clickhouse.dsn = "chdb:///clickhouse"
    secret = tmp_path / "new" / "secret.key"
    secret.parent.mkdir()
    secret.write_text("of a host that keeps nothing else")
    with pytest.raises(CannotRestore, match=r"secret\.key exists"):
        restore(config, good)
    assert secret.read_text() == "of a host that keeps nothing else"
    secret.unlink()
    (good / "files" / "secret.key").write_text("another")
    with pytest.raises(CannotRestore, match="not what was backed up"):
        restore(config, good)
    assert not (tmp_path / "new" / "tollgate.db").exists()


def test_the_commands(tmp_path):
    def run(*arguments: str, folder: str, code: int = 0, file_max_bytes: int = -1) -> str:
        command = [sys.executable, "-m", "services.cli.main", *arguments]
        done = subprocess.run(
            [*command, "--data-dir", str(tmp_path / folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_max_bytes, -1)),
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    run("migrate", folder="one")
    made = json.loads(run("account", "create", "someone", "--json", folder="one"))
    run("account", "topup", "someone", "5", folder="one")
    artifact = Path("artifacts", "ab", "ab" * 32)
    for path in (artifact, Path("artifacts", "drafts", "half")):
        (tmp_path / "one" / path).parent.mkdir(parents=True)
        (tmp_path / "one" / path).write_bytes(b"what a job made")
    backup = tmp_path / "backup"
    full = run("backup", str(backup), folder="one", code=1, file_max_bytes=100_000)
    assert (full.count("\n"), f"{backup}/books.db" in full) == (1, True)
    assert list(backup.iterdir()) == [], "it can be begun again"
    assert "filled from the log" in run("backup", str(backup), folder="one")
    assert (backup / "manifest.json").stat().st_mode & 0o777
    assert backup.stat().st_mode & 0o077 == 0
    full = run("restore", str(backup), folder="two", code=1, file_max_bytes=100_000)
    assert (full.count("\n"), f"{tmp_path}/two/tollgate.db" in full) == (1, True)
    run("restore", str(backup), folder="two")
    (listed,) = json.loads(run("account", "list", "--json", folder="two"))
    assert (listed["id"], listed["available_usd"]) == (made["id"], "5")
    assert "exists" in run("restore", str(backup), folder="two", code=1)
    for name in (artifact, "secret.key"):
        one, two = ((tmp_path / each / name).read_bytes() for each in ("one", "two"))
        assert one == two
    assert not (tmp_path / "two" / "artifacts" / "drafts").exists()
