"""The tables. `*_nano` integer nano-USD; `*_at` integer microseconds since the epoch, UTC.

Money is BIGINT. Rows of `posting`, `price_version` and `wallet_movement` are never changed: the
migration puts triggers on them.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_AT_ONCE = "requests at once; 0: unlimited"
_RATE = "0: unlimited"


def _rates() -> list[Column[Any]]:
    return [
        Column("concurrency", Integer, nullable=False, server_default="0", comment=_AT_ONCE),
        Column("requests_per_min", BigInteger, nullable=False, server_default="0", comment=_RATE),
        Column("tokens_per_min", BigInteger, nullable=False, server_default="0", comment=_RATE),
    ]


# SQLite numbers rows by itself only for INTEGER, which has 64 bits there anyway.
_Serial = BigInteger().with_variant(Integer, "sqlite")

account = Table(
    "account",
    metadata,
    Column("id", Text, primary_key=True, comment="acct_<hex>"),
    Column("name", Text, nullable=False, unique=True, comment="unique, as the operator calls it"),
    Column("kind", Text, nullable=False, comment="individual | org"),
    Column("status", Text, nullable=False, comment="active | paused | disabled"),
    Column(
        "wallet_limit_id",
        Text,
        ForeignKey("limit_row.id"),
        nullable=False,
        comment="the limit row that every key of this account must fit",
    ),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    *_rates(),
)

member = Table(
    "member",
    metadata,
    Column("id", Text, primary_key=True, comment="mem_<hex>"),
    Column(
        "account_id", Text, ForeignKey("account.id"), nullable=False, comment="the org; it pays"
    ),
    Column("name", Text, nullable=False, comment="unique in the org"),
    Column("email", Text, nullable=False, comment="empty: none"),
    Column("role", Text, nullable=False, comment="owner | admin | member"),
    Column("status", Text, nullable=False, comment="active | disabled"),
    Column("models", Text, nullable=False, comment="JSON list of models granted; [*]: every one"),
    Column("concurrency", Integer, nullable=False, comment="requests at once; 0: unlimited"),
    Column(
        "quota_limit_id",
        Text,
        ForeignKey("limit_row.id"),
        nullable=False,
        comment="the allotment; its limit is NULL when there is none",
    ),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    UniqueConstraint("account_id", "name"),
)

member_model_cap = Table(
    "member_model_cap",
    metadata,
    Column("member_id", Text, ForeignKey("member.id"), primary_key=True, comment="whose"),
    Column("model", Text, primary_key=True, comment="canonical model id"),
    Column(
        "limit_id",
        Text,
        ForeignKey("limit_row.id"),
        nullable=False,
        comment="what the member may spend on the model; a cap once made keeps its row",
    ),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True, comment="key_<hex>"),
    Column(
        "account_id",
        Text,
        ForeignKey("account.id"),
        nullable=False,
        index=True,
        comment="who pays",
    ),
    Column("name", Text, nullable=False, comment="for people; not unique"),
    Column("masked", Text, nullable=False, comment="the secret as it may be shown"),
    Column("secret_sha256", Text, nullable=False, unique=True, comment="hex; the lookup"),
    Column("secret_sealed", Text, nullable=False, comment="the secret, Fernet-encrypted"),
    Column("group_name", Text, nullable=False, comment="routing_group.name"),
    Column("status", Text, nullable=False, comment="active | revoked | disabled"),
    Column(
        "quota_limit_id",
        Text,
        ForeignKey("limit_row.id"),
        nullable=False,
        comment="the key's lifetime quota; its limit is NULL when it has none",
    ),
    Column("expires_at", BigInteger, comment="NULL: never"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    Column("revoked_at", BigInteger, comment="database time; NULL while not revoked"),
    Column(
        "parent_id", Text, ForeignKey("api_key.id"), index=True, comment="of a sub-key; one level"
    ),
    Column(
        "member_id", Text, ForeignKey("member.id"), index=True, comment="whose; NULL: the account's"
    ),
    Column("ip_allow", Text, nullable=False, server_default="[]", comment="JSON CIDRs; []: all"),
    Column("ip_deny", Text, nullable=False, server_default="[]", comment="JSON CIDRs"),
    Column(
        "models", Text, nullable=False, server_default="[]", comment="JSON; []: all of the group"
    ),
    *_rates(),
    Column(
        "more_limit_ids",
        Text,
        nullable=False,
        server_default="[]",
        comment="JSON: limits that it must fit beside its quota and the wallet, without caps",
    ),
)

routing_group = Table(
    "routing_group",
    metadata,
    Column("name", Text, primary_key=True, comment="as keys and channels name it"),
    Column("multiplier_ppm", BigInteger, nullable=False, comment="price factor, parts per million"),
    Column("models", Text, nullable=False, comment="JSON list of model ids; empty: every one"),
)

channel = Table(
    "channel",
    metadata,
    Column("name", Text, primary_key=True, comment="as the configuration names it"),
    Column("dialect", Text, nullable=False, comment="anthropic | chat | responses"),
    Column("base_url", Text, nullable=False, comment="of the upstream"),
    Column("credential_sealed", Text, nullable=False, comment="Fernet-encrypted"),
    Column("models", Text, nullable=False, comment="JSON object: model -> the upstream's name"),
    Column("groups", Text, nullable=False, comment="JSON list of the groups it serves"),
    Column("priority", Integer, nullable=False, comment="higher first"),
    Column("weight", Integer, nullable=False, comment="share among equal priorities"),
    Column("max_concurrency", Integer, nullable=False, comment="0: unlimited"),
    Column("connect_timeout_s", Float, nullable=False, comment="seconds"),
    Column("first_byte_timeout_s", Float, nullable=False, comment="seconds; streams"),
    Column("total_timeout_s", Float, nullable=False, comment="seconds; not streams"),
    Column("idle_timeout_s", Float, nullable=False, comment="seconds; streams"),
    Column("count_tokens", Boolean, nullable=False, comment="the upstream can count tokens"),
    Column(
        "provider",
        Text,
        nullable=False,
        server_default="",
        comment="of a media channel: its adapter; empty: text",
    ),
)

price_version = Table(
    "price_version",
    metadata,
    Column("id", Text, primary_key=True, comment="pv_<16 hex of the SHA-256 of the book>"),
    Column("body", Text, nullable=False, comment="the price book, JSON; never changed"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
)

price_schedule = Table(
    "price_schedule",
    metadata,
    Column("id", _Serial, primary_key=True, comment="of two with equal time, the later one rules"),
    Column(
        "price_version_id",
        Text,
        ForeignKey("price_version.id"),
        nullable=False,
        comment="in force from effective_at until the next row",
    ),
    Column("effective_at", BigInteger, nullable=False, index=True, comment="from when"),
)

price_override = Table(
    "price_override",
    metadata,
    Column("channel", Text, primary_key=True, comment="channel name; empty: the model itself"),
    Column("model", Text, primary_key=True, comment="canonical model id"),
    Column(
        "body",
        Text,
        nullable=False,
        comment="JSON: a model price, or the class prices of a named channel",
    ),
)

catalog_version = Table(
    "catalog_version",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    Column("version", BigInteger, nullable=False, comment="grows with every catalog change"),
)

catalog_change = Table(
    "catalog_change",
    metadata,
    Column(
        "version",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="that the change made",
    ),
    Column("account_id", Text, nullable=False, comment="what changed; empty: all may have"),
)

limit_row = Table(
    "limit_row",
    metadata,
    Column("id", Text, primary_key=True, comment="lim_<hex>; rows are locked in this order"),
    Column("kind", Text, nullable=False, comment="services.core.budgets.KINDS"),
    Column("subject", Text, nullable=False, comment="account, key, member or member:model"),
    Column("limit_nano", BigInteger, comment="NULL: unlimited"),
    Column("settled_nano", BigInteger, nullable=False, comment="charged by settled events"),
    Column("leased_nano", BigInteger, nullable=False, comment="in leases, not settled yet"),
    Column("recall_at", BigInteger, comment="when a request last waited for idle leases"),
    Column("window_us", BigInteger, comment="length of a rolling window; NULL: no window"),
    Column("since_at", BigInteger, comment="from when the window has counted"),
    Column("buckets", Text, comment="JSON [[number, nano], ...] of 1/60 window each"),
    UniqueConstraint("kind", "subject"),
    CheckConstraint("settled_nano >= 0", name="settled"),
    CheckConstraint("leased_nano >= 0", name="leased"),
)

incarnation = Table(
    "incarnation",
    metadata,
    Column("id", Text, primary_key=True, comment="<role>-<uuid7 hex>"),
    Column("role", Text, nullable=False, comment="edge | batch"),
    Column("host", Text, nullable=False, comment="where it ran"),
    Column("state", Text, nullable=False, comment="open | closing | closed | lost"),
    Column("opened_at", BigInteger, nullable=False, comment="database time"),
    Column("closing_at", BigInteger, comment="from when it got no grant"),
    Column("closed_at", BigInteger, comment="when its last event was applied"),
    Column("seen_at", BigInteger, comment="when a relay last had its files; NULL: never"),
    Column(
        "catalog_version",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="that the worker acts on",
    ),
)

lease = Table(
    "lease",
    metadata,
    Column("id", Text, primary_key=True, comment="lease_<hex>"),
    Column("incarnation_id", Text, ForeignKey("incarnation.id"), nullable=False, comment="holder"),
    Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="who pays"),
    Column("key_id", Text, ForeignKey("api_key.id"), nullable=False, comment="whose budget"),
    Column(
        "limit_ids", Text, nullable=False, comment="JSON list; settlement touches exactly these"
    ),
    Column("amount_nano", BigInteger, nullable=False, comment="granted less given back"),
    Column("consumed_nano", BigInteger, nullable=False, comment="charged by settled events"),
    Column("reserved_nano", BigInteger, nullable=False, comment="held, as last reported"),
    Column("spent_nano", BigInteger, nullable=False, comment="spent in all, as last reported"),
    Column("events_applied", BigInteger, nullable=False, comment="events settled so far"),
    Column("events_total", BigInteger, comment="events in all; NULL until lease_closed came"),
    Column("grant_no", BigInteger, nullable=False, comment="number of the last grant, from 1"),
    Column("grant_nano", BigInteger, nullable=False, comment="amount of the last grant"),
    Column("give_no", BigInteger, nullable=False, comment="number of the last give-back; 0: none"),
    Column("state", Text, nullable=False, comment="open | closing | closed"),
    Column("opened_at", BigInteger, nullable=False, comment="database time"),
    Column("closed_at", BigInteger, comment="database time"),
    Column(
        "model", Text, nullable=False, server_default="", comment="the capped model; empty: others"
    ),
    CheckConstraint("consumed_nano <= amount_nano", name="consumed"),
    Index(
        "ix_lease_incarnation_live",
        "incarnation_id",
        sqlite_where=text("state <> 'closed'"),
        postgresql_where=text("state <> 'closed'"),
    ),
    Index(
        "ix_lease_account_live",
        "account_id",
        sqlite_where=text("state <> 'closed'"),
        postgresql_where=text("state <> 'closed'"),
    ),
)

applied = Table(
    "applied",
    metadata,
    Column("event_id", Text, primary_key=True, comment="an event that the ledger has taken"),
    Column("body_hash", Text, nullable=False, comment="SHA-256 of its bytes, hex"),
    Column("topic", Text, nullable=False, comment="where it was read"),
    Column("partition", Integer, nullable=False, comment="where it was read"),
    Column("offset", BigInteger, nullable=False, comment="where it was read"),
)

settlement = Table(
    "settlement",
    metadata,
    Column("request_id", Text, primary_key=True, comment="a request has one terminal event"),
    Column("event_id", Text, nullable=False, comment="the terminal"),
    Column("account_id", Text, nullable=False, comment="who pays"),
    Column("key_id", Text, nullable=False, comment="with which key"),
    Column("charged_nano", BigInteger, nullable=False, comment="from the wallet"),
    Column("cost_nano", BigInteger, nullable=False, comment="charged and written off"),
    Column("provider_cost_nano", BigInteger, nullable=False, comment="what the provider charges"),
    Column("outcome", Text, nullable=False, comment="who pays: schemas.errors.Outcome"),
    Column("occurred_at", BigInteger, nullable=False, comment="of the terminal"),
    CheckConstraint("charged_nano <= cost_nano", name="charged"),
)

posting = Table(
    "posting",
    metadata,
    Column("event_id", Text, primary_key=True, comment="the transaction; its postings sum to 0"),
    Column("line", Integer, primary_key=True, autoincrement=False, comment="from 1"),
    Column("ledger_account", Text, nullable=False, comment="wallet:<account id>, revenue, ..."),
    Column("amount_nano", BigInteger, nullable=False, comment="signed"),
    Column("occurred_at", BigInteger, nullable=False, comment="of the event"),
)

balance = Table(
    "balance",
    metadata,
    Column("ledger_account", Text, primary_key=True, comment="as in posting"),
    Column("amount_nano", BigInteger, nullable=False, comment="sum of its postings"),
    Column("postings", BigInteger, nullable=False, comment="number of its postings"),
)

ledger_position = Table(
    "ledger_position",
    metadata,
    Column("topic", Text, primary_key=True, comment="of the bus"),
    Column("partition", Integer, primary_key=True, autoincrement=False, comment="of the topic"),
    Column("next_offset", BigInteger, nullable=False, comment="first offset not applied"),
    Column("last_event_id", Text, nullable=False, comment="at next_offset - 1; empty: none"),
    Column("owner_epoch", BigInteger, nullable=False, comment="grows with every claim"),
)

dead_event = Table(
    "dead_event",
    metadata,
    Column("id", _Serial, primary_key=True, comment="in order of arrival"),
    Column("topic", Text, nullable=False, comment="where it was read"),
    Column("partition", Integer, nullable=False, comment="where it was read"),
    Column("offset", BigInteger, nullable=False, comment="where it was read"),
    Column("event_id", Text, nullable=False, index=True, comment="empty when it cannot be read"),
    Column("account_id", Text, nullable=False, comment="the partition key"),
    Column("reason", Text, nullable=False, comment="a word of the sink's closed list"),
    Column("detail", Text, nullable=False, comment="what exactly was wrong"),
    Column("body", LargeBinary, nullable=False, comment="the bytes as they were read"),
    Column("state", Text, nullable=False, comment="dead | replayed | dismissed"),
    Column("dead_at", BigInteger, nullable=False, comment="database time"),
    UniqueConstraint("topic", "partition", "offset"),
    Index("ix_dead_event_state_reason_id", "state", "reason", "id"),
)

wallet_movement = Table(
    "wallet_movement",
    metadata,
    Column("id", Text, primary_key=True, comment="mov_<hex>"),
    Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="whose wallet"),
    Column("movement", Text, nullable=False, comment="schemas.events.MOVEMENTS"),
    Column("amount_nano", BigInteger, nullable=False, comment="signed: a debit is negative"),
    Column("external_id", Text, comment="unique per account; NULL: none was given"),
    Column("note", Text, nullable=False, comment="for people"),
    Column("actor", Text, nullable=False, comment="who moved it"),
    Column("occurred_at", BigInteger, nullable=False, comment="database time"),
    UniqueConstraint("account_id", "external_id"),
)

# As the index says it: `shipped = 0`, which SQLAlchemy makes of the column on SQLite, is another
# condition there, and every look of the relay would go over all that was shipped.
UNSHIPPED = text("NOT sql_outbox.shipped")
sql_outbox = Table(
    "sql_outbox",
    metadata,
    Column("id", _Serial, primary_key=True, comment="shipped in this order"),
    Column("event_id", Text, nullable=False, unique=True, comment="of the event"),
    Column("account_id", Text, nullable=False, comment="the partition key"),
    Column("body", LargeBinary, nullable=False, comment="the event, JSON"),
    Column("shipped", Boolean, nullable=False, comment="the bus has it"),
    Index(
        "ix_sql_outbox_unshipped",
        "id",
        sqlite_where=text("NOT shipped"),
        postgresql_where=text("NOT shipped"),
    ),
)

sink_position = Table(
    "sink_position",
    metadata,
    Column("topic", Text, primary_key=True, comment="of the bus"),
    Column("partition", Integer, primary_key=True, autoincrement=False, comment="of the topic"),
    Column("next_offset", BigInteger, nullable=False, comment="first offset in no plan"),
    Column("last_event_id", Text, nullable=False, comment="at next_offset - 1; empty: none"),
    Column("owner_epoch", BigInteger, nullable=False, comment="grows with every claim"),
)

sink_plan = Table(
    "sink_plan",
    metadata,
    Column("id", _Serial, primary_key=True, comment="in order of making"),
    Column("topic", Text, nullable=False, comment="of the bus"),
    Column("partition", Integer, nullable=False, comment="of the topic"),
    Column("first_offset", BigInteger, nullable=False, comment="first offset of the range"),
    Column("last_offset", BigInteger, nullable=False, comment="last offset of the range"),
    Column("last_event_id", Text, nullable=False, comment="at last_offset"),
    Column("n_rows", BigInteger, nullable=False, comment="rows to insert"),
    Column("dropped", Text, nullable=False, comment="JSON list of event ids stored before"),
    Column("sha256", Text, nullable=False, comment="of the rows, hex"),
    Column("table_epoch", BigInteger, nullable=False, comment="of the ClickHouse tables"),
    Column("state", Text, nullable=False, comment="OPEN | DONE"),
    Column("made_at", BigInteger, nullable=False, comment="database time"),
    Index(
        "uq_sink_plan_open",
        "topic",
        "partition",
        unique=True,
        sqlite_where=text("state = 'OPEN'"),
        postgresql_where=text("state = 'OPEN'"),
    ),
    Index("ix_sink_plan_topic_partition_last_offset", "topic", "partition", "last_offset"),
)
