"""The folder of an embedded engine: one process at a time, and no litter of a killed one."""

import fcntl
import os
import tempfile
from pathlib import Path


class EngineBusy(Exception):
    """Another process has the folder open; ask that process instead, or stop it."""


class EmbeddedEngine:
    """Ownership of the engine folder `path`, by an flock on `<path>.lock` beside it.

    The driver spools every insert through a temporary file and a kill leaves that file behind.
    So the process that owns an engine has its temporary files in `<path>.spool`, which is emptied
    when the next owner starts. (The engine, too, is one per process.)

    Raises EngineBusy with the owner's process id."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(f"{self.path}.lock", "a+", encoding="ascii")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as ex:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise EngineBusy(
                f"{self.path} is open in another process (pid {owner}); "
                "one process at a time can read or write it"
            ) from ex
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._tempdir_before = tempfile.tempdir
        tempfile.tempdir = self._sweep()

    def _sweep(self) -> str:
        spool = Path(f"{self.path}.spool")
        spool.mkdir(mode=0o700, exist_ok=True)
        for left in spool.iterdir():
            left.unlink(missing_ok=True)
        return str(spool)

    def release(self) -> None:
        """Gives the folder up; the engine's clients must be closed by now."""
        tempfile.tempdir = self._tempdir_before
        self._lock.close()
