"""How many steps of each channel run in this process: an upstream that answers nobody must not take
the threads that the others' jobs need.

A channel may have three times as many steps as there are threads left, so one that hangs gets
three quarters of them, two that hang three sevenths each, and something is always left. One that
says that it is asked too often rests: nothing of it is claimed meanwhile.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_SHARE: Final = 3
_STUCK_S: Final = 5.0


class Lanes:
    """Safe in threads."""

    def __init__(self, threads: int, monotonic_s: Callable[[], float]) -> None:
        self._threads = threads
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._since_s: defaultdict[str, list[float]] = defaultdict(list)
        self._rests_s: dict[str, float] = {}

    def has_room(self, channel: str) -> bool:
        """Whether another step of the channel may run."""
        with self._lock:
            return not self._is_full(channel)

    def rest(self, channel: str, seconds: float) -> None:
        """No step of the channel begins for so long."""
        with self._lock:
            self._rests_s[channel] = self._monotonic_s() + seconds

    def full(self) -> list[str]:
        """The channels that have no room, or rest."""
        with self._lock:
            return [each for each in {*self._since_s, *self._rests_s} if self._is_full(each)]

    def stuck(self) -> list[str]:
        """Those of them where nothing moves."""
        before_s = self._monotonic_s() - _STUCK_S
        with self._lock:
            full = [each for each in self._since_s if self._is_crowded(each)]
            return [each for each in full if max(self._since_s[each]) < before_s]

    @contextmanager
    def step(self, channel: str) -> Iterator[bool]:
        """A step of the channel, if there is room."""
        since_s = self._monotonic_s()
        with self._lock:
            taken = not self._is_full(channel)
            if taken:
                self._since_s[channel].append(since_s)
        try:
            yield taken
        finally:
            if taken:
                with self._lock:
                    self._since_s[channel].remove(since_s)
                    if not self._since_s[channel]:
                        del self._since_s[channel]

    def _is_full(self, channel: str) -> bool:
        until_s = self._rests_s.get(channel)
        if until_s is not None and until_s > self._monotonic_s():
            return True
        self._rests_s.pop(channel, None)
        return self._is_crowded(channel)

    def _is_crowded(self, channel: str) -> bool:
        left = self._threads - sum(len(each) for each in self._since_s.values())
        mine = len(self._since_s.get(channel, ()))
        return mine > 0 and mine >= _SHARE * left
