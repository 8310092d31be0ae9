"""What the edge must know to answer: accounts, keys, groups, channels and the price version.

Plain records without I/O; `services.backends.sql.catalog` reads and writes them. The garbage
collector passes over those of which there may be hundreds of thousands: none is part of a cycle."""

import msgspec

from services.core.prices import PriceVersion


class Account(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    id: str
    name: str
    kind: str = "individual"  # individual | org
    status: str = "active"  # active | paused | disabled
    created_at: int = 0
    concurrency: int = 0  # requests at once; 0: unlimited, as the next two
    requests_per_min: int = 0
    tokens_per_min: int = 0


class Member(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A member of an org. Its keys may call only `models` (canonical ids; `("*",)`: every one)
    and spend at most its allotment, `quota_nano`; `caps_nano` are its caps by model, None for one
    that was taken away again."""

    id: str
    account_id: str
    name: str
    email: str = ""
    role: str = "member"  # owner | admin | member
    status: str = "active"  # active | disabled
    models: tuple[str, ...] = ()
    concurrency: int = 0  # requests at once; 0: unlimited
    quota_nano: int | None = None
    quota_limit_id: str = ""
    caps_nano: dict[str, int | None] = {}
    cap_limit_ids: dict[str, str] = {}
    created_at: int = 0


class Key(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A `sk-toll-...` key without its secret. A sub-key has a `parent_id`, a key of an org's
    member a `member_id`.

    `limit_ids` are the limit rows that every request of this key must fit: its quota and windows,
    its parent's, its member's allotment, the wallet; `window_ids` the windows among them. A
    request for a model of `model_caps` must fit that limit too."""

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
    parent_id: str | None = None
    member_id: str | None = None
    window_5h_nano: int | None = None
    window_1d_nano: int | None = None
    window_7d_nano: int | None = None
    ip_allow: tuple[str, ...] = ()  # CIDRs; empty: every address
    ip_deny: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # canonical ids; empty: every one of the group
    concurrency: int = 0  # requests at once; 0: unlimited, as the next two
    requests_per_min: int = 0
    tokens_per_min: int = 0
    limit_ids: tuple[str, ...] = ()
    window_ids: tuple[str, ...] = ()
    model_caps: dict[str, str] = {}  # canonical model id -> limit id


class Group(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    multiplier_ppm: int
    models: tuple[str, ...] = ()  # canonical ids; empty = every priced model


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream account. `models` maps a canonical model id to the upstream's name for it
    (equal names when the operator wrote a list). `credential` is clear text: never log it."""

    name: str
    dialect: str  # empty: a media channel
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
    provider: str = ""  # of a media channel


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One consistent reading of the catalog at `version`. Its keys are `inherited`: what their
    parents and members allow holds for them."""

    version: int
    accounts: dict[str, Account]
    keys: dict[str, Key]  # by secret_sha256
    groups: dict[str, Group]
    channels: tuple[Channel, ...]
    prices: PriceVersion
    members: dict[str, Member] = {}
    keys_by_id: dict[str, Key] = {}  # the same ones
