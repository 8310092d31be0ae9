"""What is done to the parts, and when: a function of the seed, as far as time allows."""

import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable

import psutil

from tests.chaos.installation import Installation, Target
from tests.parts.stack import ROOT

EVERY_S = 0.8  # the mean pause between two actions
FROZEN_MAX_S = 4.0
_POINT = re.compile(r'crash_point\("([^"]+)"\)')


def crash_points() -> list[str]:
    """Every place at which one of the processes that run here can be made to die."""
    found: set[str] = set()
    for folder in ("backends", "edge", "meter"):
        for file in (ROOT / "services" / folder).rglob("*.py"):
            found.update(_POINT.findall(file.read_text("utf-8")))
    return sorted(found)


class Actions:
    """Hurts one part after the other; `step` is called often, by the thread that started them."""

    def __init__(self, program: Installation, seed: int, say: Callable[[str], None]) -> None:
        self._program = program
        self._rng = random.Random(f"{seed}:actions")
        self._say = say
        self._targets = program.targets()
        self._points = crash_points()
        self._began_s = self._next_s = time.monotonic()
        self._later: list[tuple[float, str, Callable[[], None]]] = []
        self._away: set[str] = set()
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        self._program.look()
        now_s = time.monotonic()
        for due in [each for each in self._later if each[0] <= now_s]:
            self._later.remove(due)
            self._do(due[1], due[2])
        if now_s >= self._next_s:
            self._next_s = now_s + self._rng.expovariate(1 / EVERY_S)
            self._act()

    def end(self) -> None:
        """What is stopped goes on, what is away comes back."""
        for _, what, do in self._later:
            self._do(what, do)
        self._later = []

    def _act(self) -> None:
        """The dice are thrown before the processes are looked at, so that a seed means the same
        whatever runs at the moment."""
        rng = self._rng
        target = rng.choices(self._targets, [each.weight for each in self._targets])[0]
        how = rng.choices(("kill", "freeze", "restart", "point"), (4, 2, 2, 3))[0]
        which, seconds, point = rng.random(), rng.random(), rng.choice(self._points)
        if how == "point":
            (self._program.orders / point).touch()
            self._note(f"die at {point}")
        elif target.name in self._away:
            return
        elif how == "freeze":
            self._freeze(target, seconds * FROZEN_MAX_S)
        elif target.away is not None:
            self._take_away(target, how, seconds * target.away.max_s)
        else:
            self._signal(target, how, which)

    def _signal(self, target: Target, how: str, which: float) -> None:
        found = target.found()
        if not found:
            return
        process = found[int(which * len(found))]
        with contextlib.suppress(psutil.Error):
            if how == "kill":
                process.kill()
            else:
                process.terminate()
            self._note(f"{how} {target.name}")

    def _freeze(self, target: Target, seconds: float) -> None:
        found = target.found()
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.suspend()

        def resume() -> None:
            self._away.discard(target.name)
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.resume()

        if found:
            self._away.add(target.name)
            self._note(f"freeze {target.name}", f"for {seconds:.1f} s")
            self._soon(seconds, "", resume)

    def _take_away(self, target: Target, how: str, seconds: float) -> None:
        away = target.away
        assert away is not None
        self._away.add(target.name)
        self._note(f"{how} {target.name}", f"for {seconds:.1f} s")
        if how == "kill":
            away.kill()
        else:
            away.stop()

        def back() -> None:
            away.start()
            self._away.discard(target.name)

        self._soon(seconds, f"start {target.name}", back)

    def _soon(self, seconds: float, what: str, do: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, what, do))

    def _do(self, what: str, do: Callable[[], None]) -> None:
        if what:
            self._say(f"{self._at()} {what}")
        do()

    def _note(self, what: str, more: str = "") -> None:
        self.done[what] += 1
        self._say(f"{self._at()} {what} {more}".rstrip())

    def _at(self) -> str:
        return f"{time.monotonic() - self._began_s:7.1f} s"
