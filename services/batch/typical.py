"""How long generations take, from those that this process has delivered: an estimate for clients
and for the pace of polls. Kept in memory: to ask the database at each submission costs more, the
more jobs it holds."""

import threading
from collections import defaultdict, deque
from typing import Final

_KEPT: Final = 21  # of each model


class Typical:
    """Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._took: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def note(self, priced_as: str, took_us: int) -> None:
        """A generation of the model was delivered `took_us` after its first attempt began."""
        with self._lock:
            self._took[priced_as].append(took_us)

    def seconds(self, priced_as: str) -> int | None:
        """The median of the latest ones; None when there were none."""
        with self._lock:
            times = sorted(self._took.get(priced_as, ()))
        return max(1, times[len(times) // 2] // 1_000_000) if times else None
