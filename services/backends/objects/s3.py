"""Artifacts in a bucket: `<prefix><sha256>`. The only file that knows boto3.

Bytes go in from a local draft and come out as they arrive, so memory stays bounded however large a
film is.
"""

import hashlib
import io
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.backends.objects.drafts import Drafts
from services.backends.objects.port import CHUNK, Draft, NotStored, StoreUnavailable

T = TypeVar("T")

_PART: Final = 32 * 1024 * 1024  # larger ones go up in parts, two at a time
_TRANSFER: Final = TransferConfig(
    multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=2
)
_PIECE: Final = 64 * 1024  # of which the library waits for the whole
_ABSENT: Final = ("404", "NoSuchKey")


class S3Store:
    """An `ObjectStore` in a bucket of S3, or of what speaks like it at `endpoint_url`. `folder` is
    for drafts. Empty keys: boto3 finds some (environment, file, the machine's role)."""

    def __init__(
        self,
        folder: Path,
        *,
        bucket: str,
        prefix: str = "",
        endpoint_url: str = "",
        region: str = "",
        access_key: str = "",
        secret_key: str = "",
    ) -> None:
        self._drafts = Drafts(folder)
        self._bucket = bucket
        self._prefix = prefix
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint_url or None,
            region_name=region or None,
            aws_access_key_id=access_key or None,
            aws_secret_access_key=secret_key or None,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "max_attempts": 3},
                max_pool_connections=32,
                s3={"addressing_style": "path" if endpoint_url else "auto"},
                # Not everything that speaks like S3 knows the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def receive(self, chunks: Iterable[bytes], limit: int) -> Draft:
        return self._drafts.receive(chunks, limit)

    def keep(self, draft: Draft) -> None:
        key = self._key(draft.sha256)
        _asked(lambda: self._client.upload_file(draft.path, self._bucket, key, Config=_TRANSFER))
        stored = hashlib.sha256()
        with self.open(draft.sha256) as file:
            while piece := file.read(CHUNK):
                stored.update(piece)
        if stored.hexdigest() != draft.sha256:
            raise StoreUnavailable(f"{key} does not hold what was written to it")
        self._drafts.drop(draft)

    def drop(self, draft: Draft) -> None:
        self._drafts.drop(draft)

    def open(self, sha256: str, first: int = 0, last: int | None = None) -> BinaryIO:
        part = {}
        if first or last is not None:  # of nothing at all there is no part
            part["Range"] = f"bytes={first}-{'' if last is None else last}"
        key = self._key(sha256)
        reply = _asked(lambda: self._client.get_object(Bucket=self._bucket, Key=key, **part))
        return io.BufferedReader(_Arriving(reply["Body"]), _PIECE)

    def delete(self, sha256: str, *, idle_s: float = 0.0) -> bool:
        key = self._key(sha256)
        if idle_s and self._age_s(key) < idle_s:
            return False
        _asked(lambda: self._client.delete_object(Bucket=self._bucket, Key=key))
        return True

    def _age_s(self, key: str) -> float:
        try:
            found = _asked(lambda: self._client.head_object(Bucket=self._bucket, Key=key))
        except NotStored:
            return math.inf
        age: float = time.time() - found["LastModified"].timestamp()
        return age

    def sweep(self) -> None:
        self._drafts.sweep()

    def _key(self, sha256: str) -> str:
        return f"{self._prefix}{sha256}"


class _Arriving(io.RawIOBase):
    """The body of an answer. Reading it raises StoreUnavailable when it ends early."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        piece: bytes = _asked(lambda: self._body.read(min(len(into), _PIECE)))
        into[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._body.close()
        super().close()


def _asked(fn: Callable[[], T]) -> T:
    try:
        return fn()
    except ClientError as ex:
        if ex.response.get("Error", {}).get("Code") in _ABSENT:
            raise NotStored(str(ex)) from ex
        raise StoreUnavailable(str(ex)) from ex
    except (BotoCoreError, Boto3Error, OSError) as ex:
        raise StoreUnavailable(str(ex)) from ex
