"""Disk space kept back for what must still be written when the disk is full."""

import os
from pathlib import Path


class Ballast:
    """A file of `size_bytes` that holds real blocks until it is dropped."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self.held = False

    def reserve(self) -> bool:
        """Takes the space unless it is held; False when there is too little. Blocks."""
        if self.held or not self._size_bytes:
            return True
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError:
            return False
        try:
            os.posix_fallocate(fd, 0, self._size_bytes)
            self.held = True
        except OSError:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(fd)
        return self.held

    def drop(self) -> bool:
        """Frees the space; False when it was not held."""
        if not self.held:
            return False
        self.held = False
        self._path.unlink(missing_ok=True)
        return True
