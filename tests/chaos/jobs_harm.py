"""The harm of the chaos of jobs: kills by chance, and at named points."""

import random
import re
import threading
import time
from collections import Counter

from tests.chaos.jobs_house import JobsHouse
from tests.parts.stack import ROOT

_POINT = re.compile(r'crash_point\("(batch\.[^"]+)"\)')


class Harm(threading.Thread):
    """Kills a process now, or orders the next one that passes a named point to die there; every
    `every_s` seconds in the mean."""

    def __init__(self, house: JobsHouse, seed: int, every_s: float) -> None:
        super().__init__(daemon=True)
        self._house = house
        self._every_s = every_s
        self._rng = random.Random(f"{seed}:harm")
        self._over = threading.Event()
        self._points = named_points()
        self.done: Counter[str] = Counter()
        self.failed: Exception | None = None

    def run(self) -> None:
        next_s = time.monotonic() + 1.0
        try:
            while not self._over.wait(0.1):
                self._house.look()
                if time.monotonic() >= next_s:
                    self._act()
                    next_s = time.monotonic() + self._rng.expovariate(1 / self._every_s)
        except Exception as ex:
            self.failed = ex

    def _act(self) -> None:
        if self._rng.random() < 0.5:
            point = self._rng.choice(self._points)
            self._house.arm(point)
            self.done[f"ordered at {point}"] += 1
            return
        name = self._rng.choice(list(self._house.parts))
        self._house.hurt(name)
        self.done[f"kill -9 {name}"] += 1

    def end(self) -> None:
        self._over.set()
        self.join()
        self._house.disarm()


def named_points() -> list[str]:
    """Every point of the batch service at which a process can be told to die."""
    folder = ROOT / "services"
    files = [*(folder / "batch").rglob("*.py"), *(folder / "backends").rglob("job*.py")]
    return sorted({point for file in files for point in _POINT.findall(file.read_text())})
