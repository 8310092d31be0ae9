"""A migration beside everything that runs: no client notices, nothing is lost, and what starts
afterwards works on the newer schema; what is newer than the schema refuses to start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text

from services.backends.sql import migrate, revision
from services.backends.sql.engine import open_engine, read, write
from tests.parts.fault_stack import FaultStack
from tests.parts.postgres import drop_database, postgres_url
from tests.parts.stack import ROOT
from tests.parts.traffic import PATIENT, Clients

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table("later", sa.Column("id", sa.Text(), primary_key=True))
    for table in ("account", "api_key", "limit_row", "lease", "incarnation", "ledger_position"):
        op.add_column(table, sa.Column("later", sa.Text(), server_default="", nullable=False))
    for table in ("applied", "settlement", "posting", "balance", "sink_plan", "sql_outbox"):
        op.add_column(table, sa.Column("later", sa.BigInteger(), nullable=True))
    op.create_index("ix_settlement_later", "settlement", ["account_id", "occurred_at"])
"""

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.part("postgres"))])
def program(request, tmp_path_factory):
    sections = {"edge": PATIENT}
    if request.param == "postgres":
        sections["database"] = {"url": postgres_url(migrated=False)}
    folder = tmp_path_factory.mktemp("live")
    stack = FaultStack(folder, sections)
    stack.url = sections.get("database", {}).get("url") or f"sqlite:///{stack.data_dir}/tollgate.db"
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
    if request.param == "postgres":
        drop_database(stack.url)


def migrate_further(url, folder):
    """What `tollgate migrate` of a later program does."""
    folder.mkdir()
    (folder / "r9999.py").write_text(NEXT.format(head=revision.known()[-1]))
    ours = Path(migrate.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(ours))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", os.pathsep.join([f"{ours}/versions", str(folder)]))

    def upgrade(connection):
        config.attributes["connection"] = connection
        command.upgrade(config, "9999")

    engine = open_engine(url, Path())
    write(engine, upgrade)
    return engine


def edge_of(program) -> psutil.Process:
    for child in psutil.Process(program.pid).children():
        if " ".join(child.cmdline()).strip() == "tollgate: edge":
            return child
    raise AssertionError("no edge")


def restart(program, title):
    """SIGTERM to a part of `tollgate up`, which starts it again."""
    for child in psutil.Process(program.pid).children():
        if " ".join(child.cmdline()).strip() == f"tollgate: {title}":
            child.terminate()
            child.wait(60)
            return
    raise AssertionError(f"no {title}")


def test_a_running_installation_is_migrated(program, tmp_path):
    clients = Clients(program, program.new_key())
    with clients.asking():
        clients.wait_served(20)
        engine = migrate_further(program.url, tmp_path / "versions")
        assert revision.of(engine) == "9999"
        assert read(engine, lambda connection: inspect(connection).has_table("later"))
        clients.wait_served(20)
        assert migrate.upgrade(program.url) == "9999", "an older program leaves it as it is"
        edge = edge_of(program)
        leaving = edge.children()[0]
        leaving.send_signal(signal.SIGTERM)
        leaving.wait(60)
        deadline = time.monotonic() + 60
        while len(edge.children()) < 2:
            assert time.monotonic() < deadline, "no new worker on the newer schema"
            time.sleep(0.1)
        restart(program, "books")
        clients.wait_served(20)
    clients.check_billed_once()
    count = text("SELECT count(*) FROM settlement WHERE later IS NULL")
    assert read(engine, lambda connection: connection.execute(count).scalar_one()) == clients.served
    engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["meter", "--roles", "relay,ledger"], 1),
        (["edge", "--port", "0", "--workers", "1"], 3),
        (["batch"], 1),
    ],
    ids=["meter", "edge", "batch"],
)
def test_a_program_newer_than_the_schema_does_not_start(tmp_path, arguments, code):
    engine = open_engine("sqlite:///tollgate.db", tmp_path)
    write(engine, lambda connection: migrate._upgrade(connection, "0001"))
    engine.dispose()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.main", *arguments, "--data-dir", str(tmp_path)],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "schema_too_old" in line]
    assert len(lines) == 1
    assert "run `tollgate migrate` first" in lines[0]
    assert "Traceback" not in done.stderr
