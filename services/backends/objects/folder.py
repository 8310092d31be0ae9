"""Artifacts in a folder: `<first two hex digits>/<sha256>`, drafts beside them in `drafts/`."""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from services.backends.objects.drafts import Drafts
from services.backends.objects.port import Draft, NotStored, StoreUnavailable

_DRAFTS: Final = "drafts"


class FolderStore:
    """An `ObjectStore` on a local file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drafts = Drafts(folder / _DRAFTS)

    def receive(self, chunks: Iterable[bytes], limit: int) -> Draft:
        return self._drafts.receive(chunks, limit)

    def keep(self, draft: Draft) -> None:
        place = self._place(draft.sha256)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.utime(draft.path)
            os.replace(draft.path, place)
            _sync_folder(place.parent)
            with place.open("rb") as file:
                stored = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex
        if stored != draft.sha256:
            raise StoreUnavailable(f"{place} does not hold what was written to it")

    def drop(self, draft: Draft) -> None:
        self._drafts.drop(draft)

    def open(self, sha256: str, first: int = 0, last: int | None = None) -> BinaryIO:
        try:
            file = self._place(sha256).open("rb")
        except FileNotFoundError as ex:
            raise NotStored(sha256) from ex
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex
        file.seek(first)
        return file

    def delete(self, sha256: str, *, idle_s: float = 0.0) -> bool:
        place = self._place(sha256)
        try:
            if idle_s and time.time() - place.stat().st_mtime < idle_s:
                return False
            place.unlink()
        except FileNotFoundError:
            pass
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex
        return True

    def sweep(self) -> None:
        self._drafts.sweep()

    def _place(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
