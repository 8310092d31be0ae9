"""Bytes on their way into the store: files of a local folder, hashed as they come."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from services.backends.objects.port import Draft, StoreUnavailable, TooLarge
from services.core.ids import uuid7_hex

_MAX_S: Final = 3600.0


class Drafts:
    """Over one folder. Safe in threads and between processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def receive(self, chunks: Iterable[bytes], limit: int) -> Draft:
        """Raises TooLarge, StoreUnavailable, and what `chunks` raises."""
        path = self._folder / uuid7_hex()
        digest, size = hashlib.sha256(), 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex
        try:
            with file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise TooLarge(f"more than {limit} bytes")
                    digest.update(chunk)
                    _write(file, chunk)
                _sync(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Draft(str(path), digest.hexdigest(), size)

    def drop(self, draft: Draft) -> None:
        Path(draft.path).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Deletes what a dead process left."""
        oldest = time.time() - _MAX_S
        for path in self._folder.glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as ex:
        raise StoreUnavailable(str(ex)) from ex


def _sync(file: BinaryIO) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
    except OSError as ex:
        raise StoreUnavailable(str(ex)) from ex
