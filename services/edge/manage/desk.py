"""What the management routes work with, and who may use them for what."""

from typing import Final, NamedTuple

from schemas.errors import Code
from services.backends.admin_key import AdminKey
from services.backends.sql.catalog import Catalog
from services.backends.sql.catalog_readers import CatalogReaders
from services.backends.sql.wallets import Wallets
from services.core.bonus import Step
from services.core.catalog import Key
from services.core.errors import Refusal
from services.core.subkeys import MONEY, RATES

_MANAGING: Final = ("owner", "admin")


class Desk(NamedTuple):
    """Made once per worker by `bootstrap`."""

    catalog: Catalog
    wallets: Wallets
    readers: CatalogReaders
    admin_key: AdminKey
    ladder: tuple[Step, ...]


class Manager(NamedTuple):
    """Who changes something: the operator (no key), or the holder of a customer's key with a role
    in its account. `actor` goes into the audit events; `owners` are the owners among the members of
    an admin's org."""

    actor: str
    key: Key | None = None
    role: str = "owner"
    owners: frozenset[str] = frozenset()

    @property
    def is_operator(self) -> bool:
        return self.key is None

    @property
    def manages_account(self) -> bool:
        """Whether every key and member of the account is theirs to change. A key with limits of
        its own is not: whoever holds it could lift them."""
        return self.key is None or (self.role in _MANAGING and not is_limited(self.key))

    def sees(self, key: Key) -> bool:
        """Whether the key exists for this manager."""
        if self.key is None:
            return True
        if key.account_id != self.key.account_id:
            return False
        return self.manages_account or key.id == self.key.id or self.changes(key)

    @property
    def around(self) -> tuple[str, str | None] | None:
        """What `sees` says, for a list of the account: itself with its sub-keys, and the member
        whose keys are its too. None: every key."""
        if self.key is None or self.manages_account:
            return None
        return self.key.id, None if is_limited(self.key) else self.key.member_id

    def changes(self, key: Key) -> bool:
        """Whether the key may be changed, revealed and ended: the account's by who manages it, a
        member's by the member, and a key's sub-keys by its holder."""
        if self.key is None:
            return True
        if key.account_id != self.key.account_id:
            return False
        own = self.key.member_id is not None and key.member_id == self.key.member_id
        mine = own and not is_limited(self.key)
        managed = self.manages_account and not self.is_above(key.member_id)
        return managed or mine or key.parent_id == self.key.id

    def is_above(self, member_id: str | None) -> bool:
        """Whether a key of that member (None: of the account itself) may do what this manager may
        not: an admin who could have it would be an owner."""
        return self.role != "owner" and (member_id is None or member_id in self.owners)


OPERATOR: Final = Manager("operator")


def is_limited(key: Key) -> bool:
    """Whether the key has a rule of its own that holds for no other key of its account."""
    rules = (*MONEY, *RATES, "ip_allow", "ip_deny", "models", "expires_at", "parent_id")
    return any(getattr(key, name) for name in rules)


def require_operator(manager: Manager) -> None:
    """Raises Refusal(PERMISSION_DENIED)."""
    if not manager.is_operator:
        raise Refusal(Code.PERMISSION_DENIED, "permission_denied: this needs the admin key")


def not_found(what: str, name: str) -> Refusal:
    """What is not there and what is somebody else's look the same."""
    return Refusal(Code.NOT_FOUND, f"not_found: there is no {what} {name!r}")
