"""Who a forwarded call is for: signed by the edge, verified by the process that answers it, and
never shown to a client."""

from typing import Annotated, Final

import msgspec

from services.backends.signed import Signer, Statement

HEADER: Final = "x-tollgate-identity"
OPERATOR: Final = "*"
LIFETIME_US: Final = 60 * 1_000_000


class Identity(Statement, frozen=True, kw_only=True):
    """The authenticated caller. `account_id` `*` is the operator."""

    account_id: Annotated[str, msgspec.Meta(min_length=1)]
    key_id: str = ""

    @property
    def is_operator(self) -> bool:
        return self.account_id == OPERATOR


def identity(account_id: str, key_id: str, now_us: int) -> Identity:
    """An identity good for a minute from `now_us`."""
    return Identity(account_id=account_id, key_id=key_id, exp=now_us + LIFETIME_US)


def identities(secret: bytes) -> Signer[Identity]:
    """With the secret of the data folder."""
    return Signer(secret, b"tollgate identities", Identity)
