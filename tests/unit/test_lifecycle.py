import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from services.backends.clock import FakeClock, SystemClock
from services.backends.lifecycle import run_threads


def test_loops_run_until_the_stop_and_leave_zero():
    stop = threading.Event()
    seen = []

    def loop(event):
        seen.append(threading.current_thread().name)
        event.wait()

    threading.Timer(0.1, stop.set).start()
    assert run_threads({"a": loop, "b": loop}, stop) == 0
    assert sorted(seen) == ["a", "b"]


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_a_loop_that_ends_stops_the_others_and_fails_the_process(how):
    stop = threading.Event()
    ended = []

    def broken(event):
        if how == "raises":
            raise RuntimeError("no")

    def other(event):
        event.wait()
        ended.append(True)

    assert run_threads({"broken": broken, "other": other}, stop) == 1
    assert ended == [True]


def test_a_loop_that_does_not_stop_is_not_waited_for_ever():
    stop = threading.Event()
    stop.set()
    started = time.monotonic()
    assert run_threads({"stuck": lambda event: time.sleep(5)}, stop, drain_s=0.1) == 1
    assert time.monotonic() - started < 4.5


def test_sigterm_sets_the_stop():
    code = """
import os, signal
from services.backends.lifecycle import Stop, run_threads
stop = Stop().install()
print("up", flush=True)
raise SystemExit(run_threads({"loop": lambda event: event.wait()}, stop))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("at", "passages"), [("here", 1), ("here:3", 3), ("elsewhere", None), ("", None)]
)
def test_a_crash_point_kills_at_its_passage(at, passages):
    code = """
from services.backends.lifecycle import crash_point
for n in range(1, 6):
    print(n, flush=True)
    crash_point("here")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "TOLLGATE_CRASH_AT": at},
    )
    if passages is None:
        assert done.returncode == 0
        assert len(done.stdout.split()) == 5
    else:
        assert done.returncode == -signal.SIGKILL
        assert len(done.stdout.split()) == passages


def test_a_child_dies_with_its_parent():
    code = """
import subprocess, sys
from services.backends.lifecycle import die_with_parent
sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleeper, preexec_fn=die_with_parent)
print(child.pid, flush=True)
import time; time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def test_a_fake_clock_moves_only_when_told():
    clock = FakeClock(1_000_000)
    clock.sleep(0.5)
    clock.advance(1)
    assert clock.now_us() == 2_500_000
    assert clock.monotonic_s() == 1.5
    assert abs(SystemClock().now_us() / 1e6 - time.time()) < 1
