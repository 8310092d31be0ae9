"""Where artifacts and uploads lie: bytes under the hex SHA-256 of themselves, never changed."""

from collections.abc import Iterable
from typing import BinaryIO, Final, NamedTuple, Protocol

CHUNK: Final = 256 * 1024


class StoreUnavailable(Exception):
    """The store cannot be written or read now: try again."""


class TooLarge(Exception):
    """More bytes than allowed were offered; nothing was kept."""


class NotStored(LookupError):
    """There are no such bytes."""


class Draft(NamedTuple):
    """Bytes that were received and are not kept yet. `path` can be opened until `keep` or
    `drop`."""

    path: str
    sha256: str
    size: int


class ObjectStore(Protocol):
    """Safe in threads and between processes. Every method raises StoreUnavailable."""

    def receive(self, chunks: Iterable[bytes], limit: int) -> Draft:
        """Takes bytes in, hashing them on the way. Raises TooLarge, and what `chunks` raises."""

    def keep(self, draft: Draft) -> None:
        """Stores a draft under its hash, durably, and reads it back. Repeating it for the same
        bytes changes nothing."""

    def drop(self, draft: Draft) -> None:
        """Forgets a draft."""

    def open(self, sha256: str, first: int = 0, last: int | None = None) -> BinaryIO:
        """From which the bytes `first` to `last` (the end) can be read next: a local file, around
        which more may lie, or (not seekable) a stream. Raises NotStored; reading a stream,
        StoreUnavailable."""

    def delete(self, sha256: str, *, idle_s: float = 0.0) -> bool:
        """Whether they are gone: not when they were kept, also once more, within `idle_s`.
        Repeating it is harmless."""

    def sweep(self) -> None:
        """Deletes drafts that a dead process left."""


def chunks_of(data: bytes) -> Iterable[bytes]:
    """`data` in pieces."""
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]
