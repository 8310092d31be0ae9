"""`tollgate up` as its user meets it: one command, everything dies, nothing is left."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from services.cli.ground import require_port
from services.core.artifacts import inspect
from tests.conftest import part_missing
from tests.parts.clients import BIN, NO_NETWORK
from tests.parts.ports import free_port

pytest_plugins = ["tests.parts.clickhouse_fixtures"]
pytestmark = [
    pytest.mark.part("chdb"),
    pytest.mark.usefixtures("chdb_folder"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parent.parent.parent
ROLES = ("edge", "books", "analytics", "batch", "sim")
BODY = {
    "model": "claude-haiku-4-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "hi"}],
}


class Up:
    """One `tollgate up` on a folder."""

    def __init__(self, folder, *arguments, port=None):
        self.folder = folder
        self.port = port or free_port()
        self.output = folder.parent / f"{folder.name}.out"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")}
        command = [sys.executable, "-m", "services.cli.main", "up", "--port", str(self.port)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(folder), *arguments],
                cwd=ROOT, env=kept, stdout=output, stderr=output,
            )  # fmt: skip

    def wait_ready(self, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while self.status("/readyz") != 200:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def wait_text(self, wanted, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while wanted not in self.text():
            assert time.monotonic() < deadline, f"no {wanted!r} in:\n{self.text()}"
            time.sleep(0.05)

    def text(self):
        return self.output.read_text()

    def status(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as reply:
                return reply.status
        except urllib.error.HTTPError as ex:
            return ex.code
        except OSError:
            return 0

    def ask(self):
        """One message with the demo key: its status; 0 for no answer."""
        more = {"anthropic-version": "2023-06-01", "content-type": "application/json"}
        request = self.request("/v1/messages", json.dumps(BODY).encode(), more)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                assert json.load(reply)["type"] == "message"
                return reply.status
        except urllib.error.HTTPError as ex:
            return ex.code
        except OSError:
            return 0

    def get(self, path):
        """The JSON answer for the demo key, patient while a killed process comes back."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(self.request(path), timeout=20) as reply:
                    return json.load(reply)
            except OSError:
                assert time.monotonic() < deadline, self.text()
                time.sleep(0.1)

    def request(self, path, body=None, headers=None):
        key = json.loads((self.folder / "demo.json").read_text())["api_key"]
        url = f"http://127.0.0.1:{self.port}{path}"
        return urllib.request.Request(url, body, {"x-api-key": key, **(headers or {})})

    def rows(self):
        """The demo account's, newest first."""
        return self.get("/v1/usage?limit=1000")["data"]

    def parts(self):
        """Role -> its process (the direct children)."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue  # it has just died
            found[line.removeprefix("tollgate: ").strip()] = child
        return found

    def part(self, role):
        """The process of a role, once it has taken its title: that may come after ready."""
        deadline = time.monotonic() + 30
        while role not in (found := self.parts()):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found[role]

    def tree(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def cli(self, *arguments):
        command = [sys.executable, "-m", "services.cli.main", *arguments]
        done = subprocess.run(
            [*command, "--data-dir", str(self.folder), "--json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def up(tmp_path):
    started = []

    def start(*arguments, name="data", **more):
        started.append(Up(tmp_path / name, *arguments, **more))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One installation for the tests that leave it running."""
    started = Up(tmp_path_factory.mktemp("up") / "data")
    try:
        started.wait_ready()
        started.wait_text("Ctrl-C drains and stops everything")
        yield started
    finally:
        code = started.stop()
    assert code == 0, started.text()


def gone(processes, timeout_s=10.0):
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def charged(rows):
    return [row["cost_usd"] for row in rows if row["outcome"] == "completed"]


def wait_for_rows(running, count, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while len(rows := running.rows()) < count:
        assert time.monotonic() < deadline, rows
        time.sleep(0.1)
    return rows


def test_one_command_serves_bills_shows_and_leaves_nothing(up):
    running = up()
    running.wait_ready()
    running.wait_text("Ctrl-C drains and stops everything")
    demo = running.folder / "demo.json"
    body = json.loads(demo.read_text())
    assert stat.S_IMODE(demo.stat().st_mode) == 0o600
    assert set(body) == {"base_url", "api_key", "admin_key", "console_url"}
    assert body["base_url"] == f"http://127.0.0.1:{running.port}"
    assert body["api_key"] in running.text()

    assert running.ask() == 200
    running.wait_text("claude-haiku-4-5              in")  # the live line of the booked request
    wait_for_rows(running, 1)
    spent = charged(running.cli("usage", "--limit", "100"))
    assert len(spent) == 1
    account = running.cli("account", "list")[0]
    assert account["charged_usd"] == spent[0]
    assert running.cli("sql", "SELECT count() AS n FROM usage")["rows"] == [[1]]
    told = running.cli("reconcile")
    assert (told["exit_code"], told["log"]["requests"], told["repeated"]) == (0, 1, 0)
    sent = running.cli("replay")
    assert sent["events"] == told["events"]
    told = running.cli("reconcile")
    assert (told["exit_code"], told["ledger"]["requests"]) == (0, 1)
    assert told["repeated"] == sent["events"]

    tree = running.tree()
    for role in ROLES:
        running.part(role)
    assert set(running.parts()) == set(ROLES)
    assert len(tree) >= 6
    assert running.stop() == 0
    assert gone(tree)
    assert "stopped" in running.text().splitlines()[-1]
    assert not (running.folder / "run" / "up.lock").exists()
    assert not (running.folder / "run" / "query.sock").exists()
    require_port("127.0.0.1", running.port)
    # The same two questions when nothing runs.
    assert charged(running.cli("usage")) == spent
    assert running.cli("sql", "SELECT count() AS n FROM usage")["rows"] == [[1]]
    assert running.cli("reconcile")["exit_code"] == 0
    for log in (running.folder / "logs").glob("*.log"):
        assert body["api_key"] not in log.read_text(), log


def paste(running, word, home, **environment):
    """Runs the printed example that holds `word`, as it stands, from the project's folder."""
    lines = [line.strip() for line in running.text().splitlines() if line.startswith("    ")]
    line = next(line for line in lines if word in line)
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=environment.pop("cwd", ROOT),
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def test_the_printed_examples_run_by_paste(running, tmp_path):
    before = len(running.rows())
    assert "simulated provider heard" in paste(running, '"claude-haiku-4-5"', tmp_path)
    assert "event: error" in paste(running, '"sim-cut-mid-stream"', tmp_path)
    wait_for_rows(running, before + 2)
    rows = json.loads(paste(running, "/v1/usage", tmp_path))["data"]
    assert [(row["outcome"], row["cost_nano"] > 0) for row in rows[:2]] == [
        ("failed", False),
        ("completed", True),
    ]
    assert "claude-haiku-4-5" in paste(running, "tollgate usage", tmp_path)
    assert "claude-haiku-4-5" in paste(running, "tollgate sql", tmp_path)
    watch_a_video_by_curl(running, tmp_path)
    wait_for_rows(running, before + 3)
    assert paste(running, "tollgate reconcile", tmp_path).splitlines()[-1] == "equal"


def test_commands_beside_it_leave_it_alone(running):
    """Its ports were chosen by it, not by their configuration."""
    assert running.cli("channel", "test", "sim-anthropic")["ok"]
    running.cli("migrate")
    told = json.loads((running.folder / "demo.json").read_text())
    assert running.cli("demo") == {name: told[name] for name in ("base_url", "api_key")}
    assert json.loads((running.folder / "demo.json").read_text()) == told
    edge = next(each for each in running.cli("doctor") if each["check"] == "edge")
    assert edge["detail"] == f"{told['base_url']} is ready"
    before = len(running.rows())
    for _ in range(6):  # each worker, for longer than it takes to see a change of the catalog
        assert running.ask() == 200
        time.sleep(0.1)
    wait_for_rows(running, before + 6)


def watch_a_video_by_curl(running, folder):
    """The lines of the README, as they stand but for the port and the data folder."""
    lines = [line[4:] for line in (ROOT / "README.md").read_text("utf-8").splitlines()]
    first = lines.index("url=http://127.0.0.1:8080")
    block = "\n".join(lines[first : lines.index("ls -l fox.mp4") + 1])
    for usual, here in (("8080", str(running.port)), ("data/", f"{running.folder}/")):
        assert block.count(usual) == 1
        block = block.replace(usual, here)
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "event: snapshot" in done.stdout
    assert '"state":"completed"' in done.stdout.partition("event: done")[2]
    film = (folder / "fox.mp4").read_bytes()
    found = inspect(film, len(film))
    assert (found.mime, found.duration_ms) == ("video/mp4", 2000)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        pytest.param("claude", "claude -p", marks=pytest.mark.part("claude-code")),
        pytest.param("codex", "codex exec", marks=pytest.mark.part("codex")),
    ],
)
def test_the_printed_client_commands_run_by_paste(running, tmp_path, name, word):
    if not (BIN / name).exists():
        part_missing({"claude": "claude-code"}.get(name, name), "run scripts/install-clients")
    before = len(running.rows())
    work = tmp_path / "work"
    work.mkdir()
    path = f"{BIN}:{os.environ['PATH']}"
    told = paste(running, word, tmp_path, cwd=work, PATH=path, **NO_NETWORK)
    assert "simulated provider heard" in told
    rows = wait_for_rows(running, before + 1)
    assert charged(rows[: len(rows) - before])


def test_a_second_start_keeps_key_and_money(up):
    """In a folder whose path is longer than the address of a socket may be."""
    name = "a folder with a name of " + "more " * 20 + "letters"
    first = up("--quiet", name=name)
    first.wait_ready()
    assert first.ask() == 200
    key = json.loads((first.folder / "demo.json").read_text())["api_key"]
    assert first.stop(signal.SIGINT) == 0
    second = up("--quiet", name=name)
    second.wait_ready()
    assert second.ask() == 200
    assert json.loads((second.folder / "demo.json").read_text())["api_key"] == key
    wait_for_rows(second, 2)
    account = second.cli("account", "list")[0]
    assert account["topped_up_usd"] == "10"
    assert second.text().count("preparing the database") == 1
    assert second.stop() == 0


def test_a_folder_and_a_port_are_used_once(running, tmp_path):
    second = Up(running.folder, "--quiet")
    assert second.process.wait(30) == 1
    assert f"another `tollgate up` (process {running.process.pid}) runs on" in running.text()
    elsewhere = Up(tmp_path / "other", "--quiet", port=running.port)
    assert elsewhere.process.wait(30) == 1
    assert elsewhere.text().splitlines()[-1].endswith("it is in use")
    before = len(running.rows())
    assert running.ask() == 200
    wait_for_rows(running, before + 1)


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_part_returns_and_the_bill_is_right(running, role):
    deadline = time.monotonic() + 60
    earlier = len(charged(running.rows()))
    while running.ask() != 200:  # workers of a master that was killed serve on for a second
        assert time.monotonic() < deadline, running.text()
        time.sleep(0.1)
    before = running.part(role)
    before.kill()
    served = 1
    while served < 3:
        assert time.monotonic() < deadline, running.text()
        served += running.ask() == 200
        time.sleep(0.1)
    while role not in running.parts() or running.parts()[role].pid == before.pid:
        assert time.monotonic() < deadline, running.text()
        time.sleep(0.1)
    assert f"{role} ended (signal SIGKILL)" in running.text()
    while len(rows := charged(running.rows())) < earlier + served:
        assert time.monotonic() < deadline, rows
        time.sleep(0.1)
    assert len(rows) == earlier + served
    total = sum(row["cost_nano"] for row in running.rows())
    deadline = time.monotonic() + 20
    while True:
        spent_nano = round(running.get("/v1/balance")["lifetime_spent_usd"] * 1e9)
        if spent_nano == total:
            break
        assert time.monotonic() < deadline, (spent_nano, total)
        time.sleep(0.2)


def test_a_killed_supervisor_takes_its_parts_along_and_the_next_start_works(up):
    running = up("--quiet")
    running.wait_ready()
    assert running.ask() == 200
    tree = running.tree()
    running.process.kill()
    running.process.wait()
    assert gone(tree, 20.0)
    again = up("--quiet", port=running.port)
    again.wait_ready()
    assert again.ask() == 200
    assert len(charged(wait_for_rows(again, 2))) == 2
    assert again.stop() == 0


def test_a_wrong_configuration_starts_nothing(up, tmp_path):
    config = tmp_path / "wrong.toml"
    config.write_text("[edge]\nworkers = 0\n")
    running = up("--config", str(config))
    assert running.process.wait(30) == 2
    assert len(running.text().splitlines()) == 1
    assert "edge.workers" in running.text()


def test_a_part_that_cannot_start_is_told_with_its_log(up, tmp_path):
    config = tmp_path / "wrong.toml"
    config.write_text('[bus]\npath = "/dev/null/bus.db"\n')
    running = up("--config", str(config), "--quiet")
    assert running.process.wait(60) == 1
    assert "does not start" in running.text()
    assert "/dev/null" in running.text()
