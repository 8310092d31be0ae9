"""Edges are restarted one after the other while fifty long streams and a crowd of short requests
run: no client sees it, and every answer is billed once."""

import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from services.backends.lifecycle import die_with_parent
from tests.conftest import part_missing
from tests.parts.balancer import LEFT_OUT_S, Balancer
from tests.parts.fault_stack import FaultStack
from tests.parts.ports import free_port
from tests.parts.stack import ROOT, TOLLGATE
from tests.parts.traffic import PATIENT, Clients
from tests.parts.wire import PATHS, request, text_body

STREAMS = 50
SLOW = "fault-slow-300"  # each answer takes many seconds

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture
def program(tmp_path):
    stack = FaultStack(tmp_path, {"edge": {**PATIENT, "graceful_timeout_s": 60}})
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


class SecondEdge:
    """`tollgate edge` on a port of its own, beside the one of `tollgate up`."""

    def __init__(self, program) -> None:
        self.program = program
        self.port = free_port()

    def start(self) -> None:
        where = [
            "--config",
            str(self.program.config_file),
            "--data-dir",
            str(self.program.data_dir),
        ]
        with (self.program.output.parent / "second.log").open("ab") as log:
            self.process = subprocess.Popen(
                [TOLLGATE, "edge", "--port", str(self.port), "--workers", "1", *where],
                cwd=ROOT,
                env=self.program._environment(),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        wait_until(lambda: ready(self.port), "the second edge is not ready")


class Stream(threading.Thread):
    """One streamed answer, read to its end."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(daemon=True)
        self.port, self.key = port, key
        self.begun = threading.Event()
        self.whole = False
        self.raw = b""

    def run(self) -> None:
        body = text_body("anthropic", stream=True, text="tell a long story")
        reply = request(
            self.port, "POST", PATHS["anthropic"], key=self.key, body=body, timeout_s=60
        )
        for _, data in reply.reads():
            self.raw += data
            self.begun.set()
        self.whole = reply.whole and reply.status == 200 and b"message_stop" in self.raw


def wait_until(done, what, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def ready(port) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def open_streams(port, key, count=STREAMS) -> list[Stream]:
    streams = [Stream(port, key) for _ in range(count)]
    for each in streams:
        each.start()
    for each in streams:
        assert each.begun.wait(30)
    return streams


def check_streams(program, streams, key):
    for each in streams:
        each.join(90)
    assert [each.whole for each in streams] == [True] * len(streams)
    rows = program.outcomes(key, len(streams), timeout_s=60)
    assert len(rows) == len(streams)
    assert {row["outcome"] for row in rows} == {"completed"}
    assert all(row["cost_nano"] > 0 for row in rows)


def part_of(program, title) -> psutil.Process:
    """The child of `tollgate up` with this title."""
    for child in psutil.Process(program.pid).children():
        if " ".join(child.cmdline()).strip() == f"tollgate: {title}":
            return child
    raise AssertionError(f"no {title}")


def test_edges_behind_a_balancer_are_restarted_one_after_the_other(program, tmp_path):
    if not Balancer.installed():
        part_missing("nginx", "it is not installed")
    second = SecondEdge(program)
    second.start()
    balancer = Balancer(tmp_path / "nginx", [program.port, second.port])
    key, short = program.new_key(SLOW), program.new_key()
    clients = Clients(program, short, port=balancer.port)
    try:
        with clients.asking():
            streams = open_streams(balancer.port, key)
            first = part_of(program, "edge")
            first.send_signal(signal.SIGTERM)
            clients.wait_served(10)
            first.wait(90)
            wait_until(lambda: ready(program.port), "the first edge did not return")
            time.sleep(2 * LEFT_OUT_S)  # the balancer tries it again; docs/operate.md
            streams += open_streams(balancer.port, key)
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(90) == 0
            clients.wait_served(10)
            second.start()
            clients.wait_served(10)
        check_streams(program, streams, key)
        clients.check_billed_once()
    finally:
        balancer.stop()
        if second.process.poll() is None:
            second.process.terminate()
            second.process.wait(30)


def test_a_single_worker_is_restarted_under_its_streams(program):
    """SIGTERM to one worker of an edge: it ends its streams and goes, the other takes the new
    requests, and a new one takes its place."""
    key, short = program.new_key(SLOW), program.new_key()
    edge = part_of(program, "edge")
    before = {worker.pid for worker in edge.children()}
    assert len(before) == 2
    clients = Clients(program, short)
    with clients.asking():
        streams = open_streams(program.port, key)
        leaving = min(before)
        os.kill(leaving, signal.SIGTERM)
        clients.wait_served(20)
        wait_until(
            lambda: len(edge.children()) == 2 and not psutil.pid_exists(leaving),
            "no new worker",
            90,
        )
        clients.wait_served(20)
    assert part_of(program, "edge").pid == edge.pid
    check_streams(program, streams, key)
    clients.check_billed_once()
