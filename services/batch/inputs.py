"""The bytes of a generation's inputs: uploads, data URLs, and what other URLs lead to where the
provider does not fetch these itself."""

import base64
import binascii
from typing import Any, Final

from services.backends.http.fetch import FetchFailed, FetchRefused
from services.backends.sql.job_records import Job
from services.batch.parts import Parts
from services.core.artifacts import ArtifactFacts, ArtifactInvalid, inspect
from services.core.media import INPUTS

_FILE: Final = "file_"
_SOUND: Final = ("audio", "video")
_TYPES: Final = {"file": _SOUND}  # what an input may be; the others are images
_FETCHED_MAX: Final = 64 * 1024 * 1024  # bytes of an input that we fetch: it is held in memory
_FETCH_S: Final = 20.0


class InputMissing(Exception):
    """An upload that the job names is gone, a data URL is none, a URL leads nowhere."""


class InputAway(Exception):
    """A URL could not be fetched now."""


def files_of(parts: Parts, held: Job, *, takes_urls: bool) -> dict[str, bytes]:
    """Bytes by the name of the param. Raises InputMissing, InputAway, NotStored,
    StoreUnavailable."""
    params = held.parameters
    found: dict[str, bytes] = {}
    for name in INPUTS:
        value = params.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        data = _bytes(parts, held.account_id, name, value)
        if data is None and isinstance(value, str) and value:
            if takes_urls:
                _judge(parts, name, value)
            else:
                data = _fetched(parts, name, value)
        if data is not None:
            found[name] = data
    return found


def _bytes(parts: Parts, account_id: str, name: str, value: Any) -> bytes | None:
    if not isinstance(value, str) or not value:
        return None
    if value.startswith("data:"):
        return decode_data_url(value, name)
    if value.startswith(_FILE):
        upload = parts.uploads.get(account_id, value)
        if upload is None:
            raise InputMissing(f"{name}: there is no file {value}")
        with parts.store.open(upload.sha256) as file:
            return file.read()
    return None


def _judge(parts: Parts, name: str, url: str) -> None:
    """The provider fetches it, from where it may reach what the client may not."""
    try:
        parts.fetcher.judge(url)
    except FetchRefused as ex:
        raise InputMissing(f"{name}: {ex}") from ex
    except FetchFailed as ex:
        raise InputAway(f"{name}: {ex}") from ex


def _fetched(parts: Parts, name: str, url: str) -> bytes:
    limit = min(parts.config.artifacts.upload_max_bytes, _FETCHED_MAX)
    try:
        with parts.fetcher.get(url, limit_bytes=limit, deadline_s=_FETCH_S) as got:
            if got.status == 200:
                data = b"".join(got.chunks())
                check_type(data, name)
                return data
            message = f"{name}: its URL answered {got.status}"
    except FetchRefused as ex:
        raise InputMissing(f"{name}: {ex}") from ex
    except FetchFailed as ex:
        raise InputAway(f"{name}: {ex}") from ex
    if got.status >= 500 or got.status in (408, 425, 429):
        raise InputAway(message)
    raise InputMissing(message)


def check_type(data: bytes, name: str, shown: str = "") -> ArtifactFacts:
    """What the bytes of the input `name` are; `shown`: how it is called. Raises InputMissing."""
    shown = shown or name
    try:
        found = inspect(data, len(data))
    except ArtifactInvalid as ex:
        raise InputMissing(f"{shown}: it is nothing that can be used: {ex}") from ex
    check_mime(found.mime, name, shown)
    return found


def check_mime(mime: str, name: str, shown: str) -> None:
    """Raises InputMissing."""
    wanted = _TYPES.get(name, ("image",))
    if mime.partition("/")[0] not in wanted:
        raise InputMissing(f"{shown}: it is {mime}, not {wanted[0]}")


def decode_data_url(value: str, name: str) -> bytes:
    """The bytes of `data:<type>;base64,<...>`. Raises InputMissing."""
    head, _, body = value.partition(",")
    if not head.endswith(";base64"):
        raise InputMissing(f"{name}: a data URL must be base64")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as ex:
        raise InputMissing(f"{name}: the data URL is not base64") from ex
