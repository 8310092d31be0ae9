"""Cursors of lists: where the next page begins, signed, so that nobody makes one up."""

import base64
import binascii

from services.batch.links import LinkSigner
from services.core.errors import InvalidRequest


def encode_cursor(signer: LinkSigner, created_at: int, row_id: str) -> str:
    """The place behind a row."""
    text = f"{created_at}.{row_id}"
    signed = f"{text}.{signer.tag(text)}"
    return base64.urlsafe_b64encode(signed.encode()).rstrip(b"=").decode()


def decode_cursor(signer: LinkSigner, cursor: str | None) -> tuple[int, str] | None:
    """(created_at, id); None without a cursor. Raises InvalidRequest."""
    if not cursor:
        return None
    try:
        signed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        text, _, tag = signed.rpartition(".")
        created_at, _, row_id = text.partition(".")
        if signer.tag(text) == tag:
            return int(created_at), row_id
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest("cursor: it is not one of ours", param="cursor")
