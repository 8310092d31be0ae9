"""Inputs that came inside a submission, as data URLs: uploads of their job, like files of forms.
The row of a job stays small, and they are erased with it."""

from collections.abc import Iterable
from typing import Any

from services.backends.objects.port import chunks_of
from services.backends.sql.uploads import JOB_INPUT
from services.batch.inputs import check_type, decode_data_url
from services.batch.parts import Parts
from services.core.media import INPUTS


def take_in(parts: Parts, account_id: str, params: dict[str, Any]) -> dict[str, str]:
    """Puts ids of uploads into checked `params` for data URLs; SHA-256 by id. Raises
    StoreUnavailable."""
    digests: dict[str, str] = {}
    for name in INPUTS:
        value = params.get(name)
        if isinstance(value, list):
            value = next(iter(value), "")
        if not isinstance(value, str) or not value.startswith("data:"):
            continue
        data = decode_data_url(value, name)
        facts = check_type(data, name)
        draft = parts.store.receive(chunks_of(data), len(data))
        try:
            parts.store.keep(draft)
        finally:
            parts.store.drop(draft)
        keep_s = parts.config.artifacts.retention_s
        made = parts.uploads.add(
            account_id,
            name,
            JOB_INPUT,
            facts.mime,
            draft.size,
            draft.sha256,
            facts.duration_ms,
            keep_s,
        )
        params[name] = made.id
        digests[made.id] = made.sha256
    return digests


def let_go(parts: Parts, account_id: str, upload_ids: Iterable[str]) -> None:
    """No job needs them."""
    for each in upload_ids:
        parts.uploads.delete(account_id, each)
