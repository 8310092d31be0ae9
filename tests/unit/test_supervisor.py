import os
import signal
import sys
import time

import psutil
import pytest

from services.cli import supervisor as supervising
from services.cli.supervisor import Part, PartKeepsDying, Supervisor

QUIET = "import time; time.sleep(60)"
SAYS_WHEN_STOPPED = """
import pathlib, signal, sys, time
def stop(*_):
    with open({path!r}, "a") as file: file.write({name!r} + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({path!r} + ".{name}").touch()
time.sleep(60)
"""


class Told(list):
    def __call__(self, line):
        self.append(line)


@pytest.fixture
def started(tmp_path):
    made = []

    def start(*parts):
        told = Told()
        supervisor = Supervisor(parts, os.environ, tmp_path / "logs", told)
        supervisor.start()
        made.append(supervisor)
        return supervisor, told

    yield start
    for supervisor in made:
        supervisor.stop(lambda: True)


def part(role, code, **more):
    return Part(role, [sys.executable, "-c", code], more.pop("grace_s", 5.0), **more)


def pid_of(supervisor, role):
    return next(e.process.pid for e in supervisor._running if e.part.role == role and e.process)


def wait_for(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_part_that_dies_is_started_again_with_growing_pauses(started, tmp_path):
    supervisor, told = started(part("weak", "print('oh no')\nraise SystemExit(3)"))

    def look():
        supervisor.look()
        return len(told) >= 3

    began = time.monotonic()
    wait_for(look)
    assert time.monotonic() - began >= sum(supervising.BACK_OFF_S[:2])
    assert told[0].startswith("weak ended (exit 3), again in 0.2 s")
    assert "again in 1 s" in told[2]
    with pytest.raises(PartKeepsDying, match=r"weak does not start:\n(?s:.*)oh no"):
        supervisor.check_start()


def test_a_killed_part_returns_as_another_process(started):
    supervisor, told = started(part("one", QUIET), part("two", QUIET))
    before = pid_of(supervisor, "one")
    kept = pid_of(supervisor, "two")
    os.kill(before, signal.SIGKILL)

    def back():
        supervisor.look()
        return any(e.process and e.process.pid not in (before, kept) for e in supervisor._running)

    wait_for(back)
    assert "signal SIGKILL" in told[0]
    assert pid_of(supervisor, "two") == kept
    supervisor.check_start()


def test_parts_stop_in_order_and_each_by_itself(started, tmp_path):
    path = str(tmp_path / "order")
    names = ("first", "second", "third")
    supervisor, told = started(
        *(part(name, SAYS_WHEN_STOPPED.format(path=path, name=name)) for name in names)
    )
    wait_for(lambda: all(os.path.exists(f"{path}.{name}") for name in names))
    assert supervisor.stop(lambda: False) is True
    with open(path) as file:
        assert tuple(file.read().split()) == names
    assert told == []


def test_a_part_that_does_not_stop_is_killed_after_its_grace(started, tmp_path):
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )
    supervisor, told = started(part("stubborn", code, grace_s=0.3))
    wait_for(ready.exists)
    pid = pid_of(supervisor, "stubborn")
    assert supervisor.stop(lambda: False) is False
    assert not psutil.pid_exists(pid)
    assert told == ["stubborn did not stop in 0.3 s: killed"]


def test_a_second_signal_ends_all_at_once(started, tmp_path):
    ready = tmp_path / "ready"
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(ready)!r}, 'w')\n"
        "time.sleep(60)"
    )
    supervisor, _ = started(part("stubborn", code, grace_s=60.0))
    wait_for(ready.exists)
    began = time.monotonic()
    assert supervisor.stop(lambda: True) is False
    assert time.monotonic() - began < 5


def test_what_a_part_started_goes_with_it(started, tmp_path):
    file = tmp_path / "grandchild"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {QUIET!r}])\n"
        f"open({str(file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    supervisor, _ = started(part("parent", code))
    wait_for(lambda: file.exists() and file.read_text())
    supervisor.stop(lambda: False)
    wait_for(lambda: not psutil.pid_exists(int(file.read_text())))


def test_a_part_leads_its_own_process_group_with_its_niceness(started):
    supervisor, _ = started(part("plain", QUIET), part("nice", QUIET, niceness=5))
    plain, nice = pid_of(supervisor, "plain"), pid_of(supervisor, "nice")
    assert os.getpgid(plain) == plain
    # One session for all: where the kernel groups tasks by session, niceness counts within it.
    assert os.getsid(plain) == os.getsid(nice) == os.getsid(0)
    assert psutil.Process(nice).nice() == psutil.Process(plain).nice() + 5


def test_a_log_keeps_one_older_file(started, tmp_path, monkeypatch):
    monkeypatch.setattr(supervising, "LOG_MAX_BYTES", 10)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "one.log").write_text("a long line that was there\n")
    started(part("one", f"print('fresh', flush=True)\n{QUIET}"))
    wait_for(lambda: (logs / "one.log").read_text() == "fresh\n")
    assert (logs / "one.log.1").read_text() == "a long line that was there\n"
