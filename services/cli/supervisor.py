"""Runs the parts of a one-machine installation as child processes.

A part that dies is started again, later each time; all die with the supervisor, whatever kills it.
Each part leads a process group of its own, so that Ctrl-C reaches the supervisor alone and the
parts stop in order."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from services.backends.lifecycle import die_with_parent

BACK_OFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
HEALTHY_S: Final = 5.0  # alive so long, a part starts with the shortest pause again
LOG_MAX_BYTES: Final = 50 * 1024 * 1024
_LOG_LOOK_S: Final = 10.0


class Part(NamedTuple):
    """One process: its role, command, seconds from SIGTERM to SIGKILL, whether its standard
    output is the operator's (else it goes to the log, as its errors do), and its niceness."""

    role: str
    command: Sequence[str]
    grace_s: float
    shows: bool = False
    niceness: int = 0


class PartKeepsDying(Exception):
    """A part died again and again before all was ready."""


class _Running:
    def __init__(self, part: Part, log: Path) -> None:
        self.part = part
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self.deaths = 0
        self.restart_s = 0.0


class Supervisor:
    """`parts` in the order in which they stop; `report` takes one line for the operator."""

    def __init__(
        self,
        parts: Sequence[Part],
        environ: Mapping[str, str],
        log_folder: Path,
        report: Callable[[str], None],
    ) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._running = [_Running(part, log_folder / f"{part.role}.log") for part in parts]
        self._environ = dict(environ)
        self._report = report
        self._looked_s = time.monotonic()

    def start(self) -> None:
        """Starts every part."""
        for each in self._running:
            self._start(each)

    def look(self) -> None:
        """Starts again what died, when its pause is over. Called every fraction of a second."""
        now_s = time.monotonic()
        for each in self._running:
            if each.process is not None:
                code = each.process.poll()
                if code is None:
                    if now_s - each.started_s >= HEALTHY_S:
                        each.deaths = 0
                    continue
                each.process = None
                pause_s = BACK_OFF_S[min(each.deaths, len(BACK_OFF_S) - 1)]
                each.deaths += 1
                each.restart_s = now_s + pause_s
                self._report(
                    f"{each.part.role} ended ({_reason(code)}), again in {pause_s:g} s; "
                    f"see {each.log}"
                )
            elif now_s >= each.restart_s:
                self._start(each)
        if now_s - self._looked_s >= _LOG_LOOK_S:
            self._looked_s = now_s
            for each in self._running:
                _rotate(each.log)

    def check_start(self, deaths_max: int = 3) -> None:
        """Raises PartKeepsDying, with the end of its log, for a part that died so often."""
        for each in self._running:
            if each.deaths >= deaths_max:
                raise PartKeepsDying(f"{each.part.role} does not start:\n{_tail(each.log)}")

    def stop(self, hurry: Callable[[], bool]) -> bool:
        """Stops the parts one after the other, each with SIGTERM and its grace, then SIGKILL;
        at once with SIGKILL when `hurry()`. Returns whether all ended by themselves."""
        clean = True
        for each in self._running:
            if each.process is None:
                continue
            clean &= self._stop(each, each.process, hurry)
            each.process = None
        return clean

    def _stop(
        self, each: _Running, process: subprocess.Popen[bytes], hurry: Callable[[], bool]
    ) -> bool:
        deadline_s = time.monotonic() + each.part.grace_s
        process.terminate()
        while time.monotonic() < deadline_s and not hurry():
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            _kill_group(process.pid)  # what it left behind, if anything
            return True
        self._report(f"{each.part.role} did not stop in {each.part.grace_s:g} s: killed")
        _kill_group(process.pid)
        process.wait()
        return False

    def _start(self, each: _Running) -> None:
        _rotate(each.log)
        with each.log.open("ab") as log:
            output: IO[bytes] | None = None if each.part.shows else log
            each.process = subprocess.Popen(  # noqa: S603 - our own parts
                each.part.command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                process_group=0,
                preexec_fn=lambda: _prepare(each.part.niceness),
            )
        each.started_s = time.monotonic()


def _prepare(niceness: int) -> None:
    """In the new process, before its command."""
    die_with_parent()
    if niceness:
        os.nice(niceness)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left in it


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _rotate(log: Path) -> None:
    """Keeps one older file. The parts append, so cutting the file under them is safe."""
    try:
        if log.stat().st_size <= LOG_MAX_BYTES:
            return
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
    except OSError:
        pass  # not there yet, or the disk is full: the parts go on


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
    except OSError:
        return "(no log)"
