"""The commands on a data folder where nothing runs. `test_up.py` has them beside running parts."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from sqlalchemy import Engine, event, insert

from services.backends.clock import SystemClock
from services.backends.sql.engine import open_engine, write
from services.backends.sql.tables import dead_event
from services.cli.main import COMMANDS, main
from services.meter.dead_repair import DeadRepair
from tests.parts.ports import free_port
from tests.parts.raw_upstream import RawUpstream

pytest_plugins = ["tests.parts.clickhouse_fixtures"]

ROOT = Path(__file__).parent.parent.parent


class Installation:
    """One data folder and the command on it."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments, **environment):
        """The command inside this process, which spares the imports of each call."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")}
        argv = ["tollgate", *arguments, "--data-dir", str(self.folder)]
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with (
            patch.dict(os.environ, {**kept, **environment}, clear=True),
            patch.object(sys, "argv", argv),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as ex:
                code = ex.code or 0
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    def apart(self, *arguments):
        """The command as a process of its own, as everybody calls it: its decoded JSON."""
        command = [sys.executable, "-m", "services.cli.main", *arguments]
        done = subprocess.run(
            [*command, "--json", "--data-dir", str(self.folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def text(self, *arguments, **environment):
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments, **environment):
        return json.loads(self.text(*arguments, "--json", **environment))

    def refused(self, *arguments, code=1, **environment):
        """The one line on stderr."""
        done = self.run(*arguments, **environment)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        return lines[0]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with one account, made by the commands themselves."""
    made = Installation(tmp_path_factory.mktemp("cli") / "data")
    made.account = made.json("account", "create", "alice")["id"]
    return made


def test_a_folder_in_which_nothing_was_made_is_told_so(tmp_path):
    """Whoever looks first: nothing of it is in the way of the command that makes the database."""
    fresh = Installation(tmp_path / "fresh")
    for command in (("dead", "list"), ("incarnation", "list"), ("price", "margin")):
        assert "run `tollgate migrate` first" in fresh.refused(*command), command
    told = fresh.run("reconcile", "--wait", "0")
    assert (told.returncode, "run `tollgate migrate` first" in told.stdout) == (2, True)
    assert fresh.run("doctor").returncode == 1
    assert fresh.json("account", "list") == []
    assert fresh.json("account", "create", "first")["name"] == "first"
    nowhere = Installation(Path("/dev/null/nothing"))
    assert "/dev/null" in nowhere.refused("account", "list")


def test_an_account_gets_money_and_shows_it(here):
    moved = here.json("account", "topup", "alice", "$12.50", "--external-id", "r-1")
    again = here.json("account", "topup", here.account, "12.5", "--external-id", "r-1")
    assert moved["movement_id"] == again["movement_id"]
    assert again["available_usd"] == "12.5"
    debit = here.json("account", "topup", "alice", "-2.5", "--movement", "admin_debit")
    assert debit["available_usd"] == "10"
    row = next(each for each in here.json("account", "list") if each["id"] == here.account)
    assert (row["name"], row["available_usd"], row["topped_up_usd"]) == ("alice", "10", "10")
    assert "alice" in here.text("account", "list")


def test_what_cannot_be_done_is_one_line(here):
    assert "there is no account 'bob'" in here.refused("account", "topup", "bob", "1")
    assert "exists already" in here.refused("account", "create", "alice")
    assert "not an amount" in here.refused("account", "topup", "alice", "ten", code=2)
    assert "free" in here.refused("account", "topup", "alice", "-99", "--movement", "chargeback")
    assert json.loads(here.refused("account", "create", "alice", "--json"))["error"]
    assert "edge.port" in here.refused("account", "list", code=2, TOLLGATE_EDGE__PORT="x")
    assert "No such command 'nothing'" in here.refused("nothing", code=2)
    for name in ("", "two\nlines", "x" * 129):
        assert "name: 1 to 128 characters" in here.refused("account", "create", name, code=2)
        refused = here.refused("key", "create", "--account", "alice", "--name", name, code=2)
        assert "--name: 1 to 128 characters" in refused
    assert "not valid UTF-8" in here.refused("account", "create", "\udcff", code=2)
    assert json.loads(here.refused("account", "list", "--json", "--nothing", code=2))["error"]
    for url in ("mysql://h/x", "spare.db", "postgresql+psycopg://u:secret@h:port/x"):
        refused = here.refused("rebuild", "ledger", "--into", url, code=2)
        assert ("write sqlite:///FILE" in refused, "secret" in refused) == (True, False)
    assert "no number of a dead event" in here.refused("dead", "show", "9" * 30, code=2)
    assert "no group 'vip'" in here.refused(
        "key", "create", "--account", "alice", "--name", "k", "--group", "vip"
    )


def test_damaged_files_full_disks_and_dead_servers_are_one_line(tmp_path):
    made = Installation(tmp_path)
    made.text("migrate")

    def apart(*arguments, stdout=subprocess.PIPE, **environment):
        """Of its own process: libraries write into this one's log instead of on the terminal."""
        command = [sys.executable, "-m", "services.cli.main", *arguments]
        done = subprocess.run(
            [*command, "--data-dir", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        return done.stderr

    with Path("/dev/full").open("w") as full:
        told = apart("account", "list", stdout=full)
    assert told == "tollgate: No space left on device\n"
    nobody = f"http://name:secret@127.0.0.1:{free_port()}"
    told = apart("sql", "SELECT 1", TOLLGATE_CLICKHOUSE__DSN=nobody)
    assert told.count("\n") == 1
    assert "127.0.0.1" in told
    assert "refused" in told
    assert "secret" not in told
    (tmp_path / "bus.db").write_bytes(b"no log" * 1000)
    assert made.refused("replay") == "tollgate: file is not a database"
    for path in tmp_path.glob("tollgate.db*"):
        path.unlink()
    (tmp_path / "tollgate.db").write_bytes(b"no books" * 1000)
    assert made.refused("account", "list") == "tollgate: file is not a database"


def test_a_list_of_accounts_asks_as_often_for_many_as_for_one(tmp_path):
    made = Installation(tmp_path)
    asked = []

    def listed():
        asked.clear()
        return len(made.json("account", "list")), len(asked)

    def note(connection, cursor, statement, *_):
        asked.append(statement)

    made.json("account", "create", "first")
    event.listen(Engine, "before_cursor_execute", note)
    try:
        few = listed()
        for name in ("second", "third"):
            made.json("account", "create", name)
        assert (few, listed()) == ((1, few[1]), (3, few[1]))
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_all_dead_events_are_all_however_many(tmp_path):
    made = Installation(tmp_path)
    made.text("migrate")
    engine = open_engine(f"sqlite:///{tmp_path}/tollgate.db", tmp_path)
    row = {"topic": "t", "partition": 0, "event_id": "e", "account_id": "a", "detail": ""}
    row |= {"reason": "unknown_account", "body": b"\xc2\x9b2J", "state": "dead", "dead_at": 1}
    rows = [{**row, "offset": at} for at in range(10_002)]
    write(engine, lambda connection: connection.execute(insert(dead_event), rows))
    assert "\x9b" not in made.text("dead", "show", "1")
    dismissed = []
    with patch.object(DeadRepair, "dismiss", lambda self, number, note: dismissed.append(number)):
        assert len(made.json("dead", "dismiss", "--all")) == len(dismissed) == 10_002
    engine.dispose()


def test_a_key_is_shown_once_listed_masked_and_revoked(here):
    made = here.json(
        "key", "create", "--account", "alice", "--name", "laptop", "--quota", "2.5",
        "--expires-in-days", "30",
    )  # fmt: skip
    assert set(made) == {"id", "key"}
    assert re.fullmatch(r"sk-toll-[A-Za-z0-9_-]{43}", made["key"])
    listed = here.text("key", "list", "--account", "alice", "--json")
    assert made["key"] not in listed
    row = next(each for each in json.loads(listed) if each["id"] == made["id"])
    assert row["key"] == f"sk-toll-...****{made['key'][-4:]}"
    assert (row["status"], row["quota_usd"], row["account_id"]) == ("active", "2.5", here.account)
    assert here.json("key", "revoke", made["id"])["status"] == "revoked"
    assert here.json("key", "revoke", made["id"])["status"] == "revoked"
    assert "there is no key 'key_x'" in here.refused("key", "revoke", "key_x")


def test_prices_are_listed_imported_and_compared(here, tmp_path):
    before = here.json("price", "list")
    assert before["models"]["claude-haiku-4-5"]["output"] == "5"
    assert before["models"]["claude-haiku-4-5"]["web_search"] == "10000"
    assert re.search(r"^veo-3\.1 .* seconds \d+", here.text("price", "list"), re.MULTILINE)
    file = tmp_path / "own.toml"
    source = (ROOT / "schemas" / "prices" / "anthropic.toml").read_text()
    head, _, rows = source.partition("[[models]]")
    row = rows.partition("[[models]]")[0]
    file.write_text(f"{head}[[models]]{row}".replace('output = "5.00"', 'output = "6.00"'))
    imported = here.json("price", "import", str(file))
    assert imported["price_version"] != before["price_version"]
    where = {"model": "claude-haiku-4-5", "channel": None, "class": "output"}
    change = {**where, "old_usd": "5", "new_usd": "6"}
    assert imported["changes"] == [change]
    assert here.json("price", "diff", before["price_version"], imported["price_version"]) == [
        change
    ]
    assert here.json("price", "list")["models"]["claude-haiku-4-5"]["output"] == "6"
    versions = [each["price_version"] for each in here.json("price", "list", "--versions")]
    assert versions[0] == imported["price_version"]
    # A later start keeps the operator's price.
    assert here.json("migrate")["price_version"] == imported["price_version"]
    file.write_text(file.read_text().replace('"6.00"', '"six"'))
    assert "models[0].usd_per_million.output" in here.refused("price", "import", str(file))


def test_channels_come_from_the_configuration(here, tmp_path):
    names = {each["name"] for each in here.json("channel", "list")}
    assert names > {"sim-anthropic", "sim-chat", "sim-responses"}  # those of media too
    assert all(name.startswith("sim-") for name in names)
    assert re.search(r"^sim-veo +- +veo +http", here.text("channel", "list"), re.MULTILINE)
    config = tmp_path / "tollgate.toml"
    config.write_text(
        '[[channels]]\nname = "c"\ndialect = "chat"\nbase_url = "http://127.0.0.1:9"\n'
        'credential = "env:UPSTREAM"\nmodels = ["gpt-4o"]\n'
    )
    where = ("--config", str(config))
    rows = here.json("channel", "list", *where)
    assert [(each["name"], each["credential"]) for each in rows] == [("c", "env:UPSTREAM")]
    assert "UPSTREAM is not set" in here.refused("channel", "test", "c", *where, code=2)
    assert "no answer" in here.refused("channel", "test", "c", *where, UPSTREAM="sk-x")
    assert "no channel 'd'" in here.refused("channel", "test", "d", *where, code=2)
    assert "sim-veo makes media" in here.refused("channel", "test", "sim-veo", code=2)


def test_options_count_at_any_level(here):
    before = ["--data-dir", str(here.folder), "--json", "account", "list"]
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.main", *before],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert [each["name"] for each in json.loads(done.stdout)] == ["alice"]


@pytest.mark.part("chdb")
def test_usage_and_sql_open_the_files_when_nothing_runs(here, chdb_folder):
    assert here.apart("usage", "--account", "alice") == []
    assert here.apart("usage", "--account", "alice", "--by", "day")["totals"]["call_count"] == 0
    statement = "-- how many = none\nSELECT 1 AS one, count() AS n FROM usage"
    assert here.apart("sql", statement)["rows"] == [[1, 0]]
    assert "there is no account 'bob'" in here.refused("usage", "--account", "bob")
    wrong = here.refused("usage", "--account", "alice", "--by", "week", code=2)
    assert "group_by must be some of day, hour, model, api_key" in wrong


def test_too_many_buckets_are_one_line(here, chdb_folder, monkeypatch):
    monkeypatch.setattr("services.meter.usage_queries.MAX_BUCKETS", -1)
    where = {"TOLLGATE_CLICKHOUSE__DSN": f"chdb:///{chdb_folder}/engine"}
    refused = here.refused("usage", "--account", "alice", "--by", "hour", **where)
    assert "group by less" in refused


def test_the_doctor_finds_what_is_wrong(here):
    def wrong(**environment):
        done = here.run("doctor", "--json", **environment)
        found = {each["check"]: each["detail"] for each in json.loads(done.stdout)}
        bad = [each["check"] for each in json.loads(done.stdout) if not each["ok"]]
        assert done.returncode == (1 if bad else 0)
        return {name: found[name] for name in bad}

    # Its edge check looks at a port that may be somebody else's: another one is asked for.
    port = {"TOLLGATE_EDGE__PORT": str(free_port())}
    assert wrong(**port) == {}
    assert list(wrong(TOLLGATE_DATABASE__URL="sqlite:////dev/null/x.db", **port)) == ["database"]
    ahead = Mock(now_us=lambda: SystemClock().now_us() + 5_000_000)
    with patch("services.cli.doctor.SystemClock", return_value=ahead):
        told = wrong(**port)
    assert list(told) == ["clock"]
    assert "+5.0 s off the database's" in told["clock"]
    secret = Path(here.folder) / "secret.key"
    kept = secret.rename(secret.with_suffix(".kept"))
    assert "secret.key is missing" in wrong(**port)["secret"]
    assert not secret.exists(), "it only looks"
    secret.write_bytes(base64.b64encode(bytes(32)))
    assert "another secret.key" in wrong(**port)["database"]
    kept.rename(secret)
    stranger = RawUpstream(lambda peer: peer.request() and peer.send(b"HTTP/1.1 200 OK\r\n\r\n"))
    told = wrong(TOLLGATE_EDGE__PORT=str(stranger.port))
    stranger.stop()
    assert "another program" in told["port"]
    assert "cannot listen" in wrong(TOLLGATE_EDGE__HOST="192.0.2.1", **port)["port"]


def test_every_command_explains_itself(here):
    listed = here.text("--help")
    for name in COMMANDS:
        assert re.search(rf"^  {name}\b", listed, re.MULTILINE), name
        if name != "sim":  # it prints the provider's own help
            assert "--json" in here.text(name, "--help")
