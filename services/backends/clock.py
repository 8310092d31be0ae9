"""Time, so that tests can set it."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""

    def monotonic_s(self) -> float:
        """Seconds that never go back, for durations and deadlines."""

    def sleep(self, seconds: float) -> None:
        """Waits; in a gevent process only the calling greenlet."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class WorkerClock(SystemClock):
    """The machine's clock as it last agreed with the database's: when it steps meanwhile, what is
    under way still ends at the right time; when it is off, what is refused is told at that time."""

    def __init__(self) -> None:
        self._ahead_us = self.ahead_us()
        self._off = False

    def now_us(self) -> int:
        return time.monotonic_ns() // 1_000 + self._ahead_us

    def ahead_us(self) -> int:
        """How far the machine's clock is before the monotonic one now."""
        return time.time_ns() // 1_000 - time.monotonic_ns() // 1_000

    def trust(self, ahead_us: int, off_us: int = 0) -> None:
        """The machine's clock was right, or `off_us` ahead, when `ahead_us` was read."""
        self._ahead_us = ahead_us - off_us
        self._off = off_us != 0

    def follow(self) -> None:
        """Nothing depends on it now: the machine's clock as it is, unless it is known to be off."""
        if not self._off:
            self._ahead_us = self.ahead_us()


class FakeClock:
    """A clock that moves only by `advance` and `sleep`. Safe in threads."""

    def __init__(self, now_us: int = 1_800_000_000_000_000) -> None:
        self._now_us = now_us
        self._monotonic_us = 0
        self._lock = threading.Lock()

    def now_us(self) -> int:
        with self._lock:
            return self._now_us

    def monotonic_s(self) -> float:
        with self._lock:
            return self._monotonic_us / 1_000_000

    def ahead_us(self) -> int:
        """As WorkerClock's."""
        with self._lock:
            return self._now_us - self._monotonic_us

    def trust(self, ahead_us: int, off_us: int = 0) -> None:
        """It is right as it is."""

    def follow(self) -> None:
        """As `trust`."""

    def advance(self, seconds: float) -> None:
        """Moves both readings by `seconds`."""
        with self._lock:
            self._now_us += round(seconds * 1_000_000)
            self._monotonic_us += round(seconds * 1_000_000)

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)
