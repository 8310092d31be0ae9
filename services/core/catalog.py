"""What the edge must know to answer: accounts, keys, groups, channels and the price version.

Plain records without I/O; `services.backends.sql.catalog` reads and writes them."""

import msgspec

from services.core.prices import PriceVersion


class Account(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    kind: str = "individual"  # individual | org
    status: str = "active"  # active | paused | disabled
    created_at: int = 0


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A `sk-toll-...` key without its secret. `limit_ids` are the ids of every limit row that a
    request of this key must fit (its own quota and the wallet)."""

    id: str
    account_id: str
    name: str
    masked: str
    secret_sha256: str  # hex, the lookup hash
    group: str
    status: str = "active"  # active | revoked | disabled
    quota_nano: int | None = None
    expires_at: int | None = None  # microseconds
    created_at: int = 0
    limit_ids: tuple[str, ...] = ()


class Group(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    multiplier_ppm: int
    models: tuple[str, ...] = ()  # canonical ids; empty = every priced model


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream account. `models` maps a canonical model id to the upstream's name for it
    (equal names when the operator wrote a list). `credential` is clear text: never log it."""

    name: str
    dialect: str
    base_url: str
    credential: str
    models: dict[str, str]
    groups: tuple[str, ...]
    priority: int = 0
    weight: int = 1
    max_concurrency: int = 0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 30.0
    total_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    count_tokens: bool = True


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One consistent reading of the catalog at `version`."""

    version: int
    accounts: dict[str, Account]
    keys: dict[str, Key]  # by secret_sha256
    groups: dict[str, Group]
    channels: tuple[Channel, ...]
    prices: PriceVersion
