"""Artifacts in a folder: `<first two hex digits>/<sha256>`, drafts beside them in `drafts/`."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from services.backends.objects.port import (
    CHUNK,
    Draft,
    NotStored,
    StoreUnavailable,
    TooLarge,
)
from services.core.ids import uuid7_hex

_DRAFTS: Final = "drafts"
_DRAFT_MAX_S: Final = 3600.0


class FolderStore:
    """An `ObjectStore` on a local file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def receive(self, chunks: Iterable[bytes], limit: int) -> Draft:
        drafts = self._folder / _DRAFTS
        path = drafts / uuid7_hex()
        digest, size = hashlib.sha256(), 0
        try:
            drafts.mkdir(parents=True, exist_ok=True)
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
                    self._write(file, chunk)
                self._sync(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Draft(str(path), digest.hexdigest(), size)

    def keep(self, draft: Draft) -> None:
        place = self._place(draft.sha256)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft.path, place)
            _sync_folder(place.parent)
            with place.open("rb") as file:
                stored = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex
        if stored != draft.sha256:
            raise StoreUnavailable(f"{place} does not hold what was written to it")

    def drop(self, draft: Draft) -> None:
        Path(draft.path).unlink(missing_ok=True)

    def open(self, sha256: str) -> BinaryIO:
        try:
            return self._place(sha256).open("rb")
        except FileNotFoundError as ex:
            raise NotStored(sha256) from ex
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex

    def delete(self, sha256: str) -> None:
        try:
            self._place(sha256).unlink(missing_ok=True)
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex

    def sweep(self) -> None:
        """Deletes drafts that a dead process left."""
        oldest = time.time() - _DRAFT_MAX_S
        for path in (self._folder / _DRAFTS).glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _place(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    @staticmethod
    def _write(file: BinaryIO, chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex

    @staticmethod
    def _sync(file: BinaryIO) -> None:
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as ex:
            raise StoreUnavailable(str(ex)) from ex


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def chunks_of(data: bytes) -> Iterable[bytes]:
    """`data` in pieces."""
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]
