"""The bytes of a generation's inputs: uploads and data URLs. Other URLs go to the provider as they
are: it fetches them itself."""

import base64
import binascii
from typing import Any, Final

from services.backends.sql.job_records import Job
from services.batch.parts import Parts
from services.core.media import INPUTS

_FILE: Final = "file_"


class InputMissing(Exception):
    """An upload that the job names is gone, or a data URL is none."""


def files_of(parts: Parts, held: Job) -> dict[str, bytes]:
    """Bytes by the name of the param. Raises InputMissing, NotStored, StoreUnavailable."""
    params = held.parameters
    found: dict[str, bytes] = {}
    for name in INPUTS:
        value = params.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        data = _bytes(parts, held.account_id, name, value)
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


def decode_data_url(value: str, name: str) -> bytes:
    """The bytes of `data:<type>;base64,<...>`. Raises InputMissing."""
    head, _, body = value.partition(",")
    if not head.endswith(";base64"):
        raise InputMissing(f"{name}: a data URL must be base64")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as ex:
        raise InputMissing(f"{name}: the data URL is not base64") from ex
