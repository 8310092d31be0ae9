"""How a process starts, stops and, in fault tests, dies at a chosen point."""

import ctypes
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import setproctitle

from services.backends import settings, structs, telemetry

_PR_SET_PDEATHSIG: Final = 1
_passes: Counter[str] = Counter()

Loop = Callable[[threading.Event], None]


class Stop(threading.Event):
    """Set by SIGTERM or SIGINT: finish what is in hand and return."""

    def install(self) -> "Stop":
        """Takes the two signals over. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: object) -> None:
        self.set()


def set_title(role: str) -> None:
    """Names the process `tollgate: <role>` in the process list."""
    setproctitle.setproctitle(f"tollgate: {role}")


def run_threads(loops: Mapping[str, Loop], stop: threading.Event, *, drain_s: float = 30.0) -> int:
    """Runs each loop in a thread of its name until `stop` is set and all have returned.

    Returns the exit code: 0, or 1 when an exception escaped a loop, one returned before `stop`, or
    one was still running `drain_s` after it. The caller exits the process with it."""
    structs.describe_all()
    log = telemetry.get_logger()
    failed: list[str] = []

    def run(name: str, loop: Loop) -> None:
        try:
            loop(stop)
        except BaseException as ex:
            failed.append(name)
            telemetry.metric("tollgate_loop_failures_total").labels(name).inc()
            log.exception("loop_failed", loop=name, error=str(ex))
        else:
            if not stop.is_set():
                failed.append(name)
                log.error("loop_ended_early", loop=name)
        finally:
            stop.set()

    threads = [
        threading.Thread(target=run, args=item, name=item[0], daemon=True) for item in loops.items()
    ]
    for thread in threads:
        thread.start()
    while not stop.wait(1.0):  # a timeout, so that the main thread sees signals
        pass
    for thread in threads:
        thread.join(drain_s)
        if thread.is_alive():
            failed.append(thread.name)
            log.error("loop_did_not_stop", loop=thread.name)
    return 1 if failed else 0


def exit_now(code: int) -> None:
    """Ends the process without waiting for threads that did not stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def crash_point(name: str) -> None:
    """Kills this process with SIGKILL when `TOLLGATE_CRASH_AT` is `name`, or at the Nth passage
    when it is `name:N`; or when the folder `TOLLGATE_CRASH_FOLDER` holds a file of that name,
    which it takes away, so that one process dies once; with the word `stop` in it the process only
    stops, until somebody continues it. Fault tests set them; otherwise it costs one comparison."""
    if not _armed:
        return
    if _crash_name == name:
        _passes[name] += 1
        if _passes[name] == _crash_pass:
            os.kill(os.getpid(), signal.SIGKILL)
    if _crash_folder:
        order = Path(_crash_folder, name)
        try:
            stops = order.read_bytes() == b"stop"
            order.unlink()  # one process succeeds in this
        except FileNotFoundError:
            return
        if not stops:
            os.kill(os.getpid(), signal.SIGKILL)
        # To this thread: another one might take it while this one goes on for a moment.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _parse_crash(text: str) -> tuple[str, int]:
    name, _, passage = text.partition(":")
    return name, int(passage) if passage.isdigit() else 1


_crash_name, _crash_pass = _parse_crash(settings.environment("TOLLGATE_CRASH_AT"))
_crash_folder = settings.environment("TOLLGATE_CRASH_FOLDER")
_armed = bool(_crash_name or _crash_folder)
