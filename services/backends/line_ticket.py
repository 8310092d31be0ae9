"""The credential of one line of a batch: made by the batch service, verified by the edge.

It is good for one try of one line, with this body, on this path, and for seconds; the edge admits a
try once (`sql/batch_lines.take`). No key's secret is needed, and none is stored.
"""

import hashlib
from typing import Final

from services.backends.signed import NotAuthentic, Signer, Statement

HEADER: Final = "x-tollgate-line"
LIFETIME_US: Final = 60 * 1_000_000


class Ticket(Statement, frozen=True, kw_only=True):
    """`body_sha256` hex."""

    batch_id: str
    line: int
    try_no: int
    request_id: str
    key_id: str
    path: str
    body_sha256: str

    def require_path(self, path: str) -> None:
        """Raises NotAuthentic unless it is for a request to `path`."""
        if self.path != path:
            raise NotAuthentic("it is for another request")

    def require_body(self, body: bytes) -> None:
        """Raises NotAuthentic unless it is for a request of `body`."""
        if self.body_sha256 != hashlib.sha256(body).hexdigest():
            raise NotAuthentic("it is for another request")


def tickets(secret: bytes) -> Signer[Ticket]:
    """With the secret of the data folder."""
    return Signer(secret, b"tollgate batch lines", Ticket)
