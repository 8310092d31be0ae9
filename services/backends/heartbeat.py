"""Tells other processes of the host that a role makes progress: a file that it touches.

The edge is ready only while the roles that bill on this host are alive."""

import time
from pathlib import Path
from typing import Final

from schemas.config import Config
from services.backends import settings

INTERVAL_S: Final = 0.5
FRESH_S: Final = 10.0


def _path(config: Config, role: str) -> Path:
    return settings.under(config, f"run/{role}.alive")


class Heartbeat:
    """Held by the role. `beat` is called in its loop, as often as it likes."""

    def __init__(self, config: Config, role: str) -> None:
        self._path = _path(config, role)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._last_s = -INTERVAL_S

    def beat(self) -> None:
        """Progress was made. Touches the file at most every half second."""
        now_s = time.monotonic()
        if now_s - self._last_s < INTERVAL_S:
            return
        self._last_s = now_s
        self._path.touch()

    def stop(self) -> None:
        """The role ends in order: whoever asks learns it at once."""
        self._path.unlink(missing_ok=True)


def alive(config: Config, role: str) -> bool:
    """Whether `role` made progress on this host within the last ten seconds."""
    try:
        return time.time() - _path(config, role).stat().st_mtime < FRESH_S
    except OSError:
        return False
