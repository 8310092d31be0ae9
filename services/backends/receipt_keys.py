"""The keys that sign receipts, in `receipts/` of the data folder.

`keys.json` lists every public key there ever was, as it is published; the private half exists for
the newest one alone (`<key_id>.key`, mode 0600). Rotating keeps old receipts verifiable and makes
it impossible to sign one with an old key.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from services.backends.clock import Clock, SystemClock
from services.core.receipts import ALGORITHM, SigningKey, encoded

FOLDER: Final = "receipts"
PUBLISHED: Final = "keys.json"


class ReceiptKeysDamaged(Exception):
    """The folder's files contradict each other; restore them from a backup, or rotate."""


class ReceiptKeys:
    """Safe for threads and processes; the first use makes the first key."""

    def __init__(self, data_dir: Path | str, clock: Clock | None = None) -> None:
        self._folder = Path(data_dir) / FOLDER
        self._clock = clock or SystemClock()
        self._known: tuple[tuple[int, int], SigningKey, dict[str, Any]] | None = None

    def signing(self) -> SigningKey:
        """The key in use; a rotation elsewhere is seen at once. Raises ReceiptKeysDamaged."""
        return self._load()[1]

    def published(self) -> dict[str, Any]:
        """`{"keys": [{key_id, alg, public_key, created_at, retired_at}]}`, the newest first; times
        in microseconds. Raises ReceiptKeysDamaged."""
        return self._load()[2]

    def rotate(self) -> str:
        """Makes a new key and destroys the private half of the one before. Returns its id."""
        with self._locked():
            return self._make()

    def _load(self) -> tuple[tuple[int, int], SigningKey, dict[str, Any]]:
        path = self._folder / PUBLISHED
        try:
            stat = path.stat()
        except FileNotFoundError:
            with self._locked():
                if not path.exists():
                    self._make()
            stat = path.stat()
        version = (stat.st_mtime_ns, stat.st_ino)
        if self._known is None or self._known[0] != version:
            self._known = (version, *self._read())
        return self._known

    def _read(self) -> tuple[SigningKey, dict[str, Any]]:
        try:
            document = json.loads((self._folder / PUBLISHED).read_bytes())
            key_id = document["keys"][0]["key_id"]
            raw = base64.b64decode((self._folder / f"{key_id}.key").read_bytes())
            key = SigningKey(raw)
        except (OSError, ValueError, LookupError, TypeError) as ex:
            raise ReceiptKeysDamaged(f"{self._folder}: {ex}") from ex
        if key.key_id != key_id:
            raise ReceiptKeysDamaged(f"{self._folder}: {key_id}.key holds another key")
        return key, document

    def _make(self) -> str:
        private = secrets.token_bytes(32)
        key = SigningKey(private)
        now_us = self._clock.now_us()
        before: list[dict[str, Any]] = []
        path = self._folder / PUBLISHED
        if path.exists():
            before = json.loads(path.read_bytes())["keys"]
            for entry in before:
                entry["retired_at"] = entry["retired_at"] or now_us
        entry = {
            "key_id": key.key_id,
            "alg": ALGORITHM,
            "public_key": encoded(key.public),
            "created_at": now_us,
            "retired_at": None,
        }
        _write(self._folder / f"{key.key_id}.key", base64.b64encode(private) + b"\n", 0o600)
        document = json.dumps({"keys": [entry, *before]}, indent=2) + "\n"
        _write(path, document.encode(), 0o644)
        for old in before:
            (self._folder / f"{old['key_id']}.key").unlink(missing_ok=True)
        return key.key_id

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.replace(fresh, path)
