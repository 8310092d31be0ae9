"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("posting", "price_version", "wallet_movement")


def upgrade() -> None:
    create_tables()
    for table in APPEND_ONLY:
        forbid_changes(table)
    op.execute("INSERT INTO catalog_version (id, version) VALUES (1, 1)")
    op.execute(
        "INSERT INTO routing_group (name, multiplier_ppm, models) VALUES ('default', 1000000, '[]')"
    )


def forbid_changes(table: str) -> None:
    """Whatever the code does, a row of `table` stays as it was written."""
    if op.get_bind().dialect.name == "sqlite":
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"EXECUTE FUNCTION {table}_append_only()"
    )


def create_tables() -> None:
    op.create_table(
        "applied",
        sa.Column(
            "event_id", sa.Text(), nullable=False, comment="an event that the ledger has taken"
        ),
        sa.Column("body_hash", sa.Text(), nullable=False, comment="SHA-256 of its bytes, hex"),
        sa.Column("topic", sa.Text(), nullable=False, comment="where it was read"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="where it was read"),
        sa.Column("offset", sa.BigInteger(), nullable=False, comment="where it was read"),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_applied")),
    )
    op.create_table(
        "balance",
        sa.Column("ledger_account", sa.Text(), nullable=False, comment="as in posting"),
        sa.Column("amount_nano", sa.BigInteger(), nullable=False, comment="sum of its postings"),
        sa.Column("postings", sa.BigInteger(), nullable=False, comment="number of its postings"),
        sa.PrimaryKeyConstraint("ledger_account", name=op.f("pk_balance")),
    )
    op.create_table(
        "catalog_version",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False, comment="always 1"),
        sa.Column(
            "version", sa.BigInteger(), nullable=False, comment="grows with every catalog change"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_version")),
    )
    op.create_table(
        "channel",
        sa.Column("name", sa.Text(), nullable=False, comment="as the configuration names it"),
        sa.Column("dialect", sa.Text(), nullable=False, comment="anthropic | chat | responses"),
        sa.Column("base_url", sa.Text(), nullable=False, comment="of the upstream"),
        sa.Column("credential_sealed", sa.Text(), nullable=False, comment="Fernet-encrypted"),
        sa.Column(
            "models", sa.Text(), nullable=False, comment="JSON object: model -> the upstream's name"
        ),
        sa.Column("groups", sa.Text(), nullable=False, comment="JSON list of the groups it serves"),
        sa.Column("priority", sa.Integer(), nullable=False, comment="higher first"),
        sa.Column("weight", sa.Integer(), nullable=False, comment="share among equal priorities"),
        sa.Column("max_concurrency", sa.Integer(), nullable=False, comment="0: unlimited"),
        sa.Column("connect_timeout_s", sa.Float(), nullable=False, comment="seconds"),
        sa.Column("first_byte_timeout_s", sa.Float(), nullable=False, comment="seconds; streams"),
        sa.Column("total_timeout_s", sa.Float(), nullable=False, comment="seconds; not streams"),
        sa.Column("idle_timeout_s", sa.Float(), nullable=False, comment="seconds; streams"),
        sa.Column(
            "count_tokens", sa.Boolean(), nullable=False, comment="the upstream can count tokens"
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_channel")),
    )
    op.create_table(
        "dead_event",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="in order of arrival",
        ),
        sa.Column("topic", sa.Text(), nullable=False, comment="where it was read"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="where it was read"),
        sa.Column("offset", sa.BigInteger(), nullable=False, comment="where it was read"),
        sa.Column("event_id", sa.Text(), nullable=False, comment="empty when it cannot be read"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="the partition key"),
        sa.Column("reason", sa.Text(), nullable=False, comment="a word of the sink's closed list"),
        sa.Column("detail", sa.Text(), nullable=False, comment="what exactly was wrong"),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="the bytes as they were read"),
        sa.Column("state", sa.Text(), nullable=False, comment="dead | replayed | dismissed"),
        sa.Column("dead_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_event")),
        sa.UniqueConstraint(
            "topic", "partition", "offset", name=op.f("uq_dead_event_topic_partition_offset")
        ),
    )
    op.create_index(op.f("ix_dead_event_event_id"), "dead_event", ["event_id"], unique=False)
    op.create_table(
        "incarnation",
        sa.Column("id", sa.Text(), nullable=False, comment="<role>-<uuid7 hex>"),
        sa.Column("role", sa.Text(), nullable=False, comment="edge | batch"),
        sa.Column("host", sa.Text(), nullable=False, comment="where it ran"),
        sa.Column("state", sa.Text(), nullable=False, comment="open | closing | closed | lost"),
        sa.Column("opened_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column(
            "closing_at", sa.BigInteger(), nullable=True, comment="from when it got no grant"
        ),
        sa.Column(
            "closed_at", sa.BigInteger(), nullable=True, comment="when its last event was applied"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incarnation")),
    )
    op.create_table(
        "ledger_position",
        sa.Column("topic", sa.Text(), nullable=False, comment="of the bus"),
        sa.Column(
            "partition", sa.Integer(), autoincrement=False, nullable=False, comment="of the topic"
        ),
        sa.Column(
            "next_offset", sa.BigInteger(), nullable=False, comment="first offset not applied"
        ),
        sa.Column(
            "last_event_id", sa.Text(), nullable=False, comment="at next_offset - 1; empty: none"
        ),
        sa.Column("owner_epoch", sa.BigInteger(), nullable=False, comment="grows with every claim"),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_ledger_position")),
    )
    op.create_table(
        "limit_row",
        sa.Column(
            "id", sa.Text(), nullable=False, comment="lim_<hex>; rows are locked in this order"
        ),
        sa.Column("kind", sa.Text(), nullable=False, comment="wallet | key_quota"),
        sa.Column(
            "subject", sa.Text(), nullable=False, comment="the account or key that it limits"
        ),
        sa.Column("limit_nano", sa.BigInteger(), nullable=True, comment="NULL: unlimited"),
        sa.Column(
            "settled_nano", sa.BigInteger(), nullable=False, comment="charged by settled events"
        ),
        sa.Column(
            "leased_nano", sa.BigInteger(), nullable=False, comment="in leases, not settled yet"
        ),
        sa.Column(
            "recall_at",
            sa.BigInteger(),
            nullable=True,
            comment="when a request last waited for idle leases",
        ),
        sa.CheckConstraint("leased_nano >= 0", name=op.f("ck_limit_row_leased")),
        sa.CheckConstraint("settled_nano >= 0", name=op.f("ck_limit_row_settled")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_limit_row")),
        sa.UniqueConstraint("kind", "subject", name=op.f("uq_limit_row_kind_subject")),
    )
    op.create_table(
        "posting",
        sa.Column(
            "event_id", sa.Text(), nullable=False, comment="the transaction; its postings sum to 0"
        ),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False, comment="from 1"),
        sa.Column(
            "ledger_account", sa.Text(), nullable=False, comment="wallet:<account id>, revenue, ..."
        ),
        sa.Column("amount_nano", sa.BigInteger(), nullable=False, comment="signed"),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False, comment="of the event"),
        sa.PrimaryKeyConstraint("event_id", "line", name=op.f("pk_posting")),
    )
    op.create_table(
        "price_override",
        sa.Column(
            "channel", sa.Text(), nullable=False, comment="channel name; empty: the model itself"
        ),
        sa.Column("model", sa.Text(), nullable=False, comment="canonical model id"),
        sa.Column(
            "body",
            sa.Text(),
            nullable=False,
            comment="JSON: a model price, or the class prices of a named channel",
        ),
        sa.PrimaryKeyConstraint("channel", "model", name=op.f("pk_price_override")),
    )
    op.create_table(
        "price_version",
        sa.Column(
            "id", sa.Text(), nullable=False, comment="pv_<16 hex of the SHA-256 of the book>"
        ),
        sa.Column("body", sa.Text(), nullable=False, comment="the price book, JSON; never changed"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_version")),
    )
    op.create_table(
        "routing_group",
        sa.Column("name", sa.Text(), nullable=False, comment="as keys and channels name it"),
        sa.Column(
            "multiplier_ppm",
            sa.BigInteger(),
            nullable=False,
            comment="price factor, parts per million",
        ),
        sa.Column(
            "models", sa.Text(), nullable=False, comment="JSON list of model ids; empty: every one"
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_routing_group")),
    )
    op.create_table(
        "settlement",
        sa.Column(
            "request_id", sa.Text(), nullable=False, comment="a request has one terminal event"
        ),
        sa.Column("event_id", sa.Text(), nullable=False, comment="the terminal"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="who pays"),
        sa.Column("key_id", sa.Text(), nullable=False, comment="with which key"),
        sa.Column("charged_nano", sa.BigInteger(), nullable=False, comment="from the wallet"),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False, comment="charged and written off"),
        sa.Column(
            "provider_cost_nano",
            sa.BigInteger(),
            nullable=False,
            comment="what the provider charges",
        ),
        sa.Column("outcome", sa.Text(), nullable=False, comment="who pays: schemas.errors.Outcome"),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False, comment="of the terminal"),
        sa.CheckConstraint("charged_nano <= cost_nano", name=op.f("ck_settlement_charged")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_settlement")),
    )
    op.create_table(
        "sink_plan",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="in order of making",
        ),
        sa.Column("topic", sa.Text(), nullable=False, comment="of the bus"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="of the topic"),
        sa.Column(
            "first_offset", sa.BigInteger(), nullable=False, comment="first offset of the range"
        ),
        sa.Column(
            "last_offset", sa.BigInteger(), nullable=False, comment="last offset of the range"
        ),
        sa.Column("last_event_id", sa.Text(), nullable=False, comment="at last_offset"),
        sa.Column("n_rows", sa.BigInteger(), nullable=False, comment="rows to insert"),
        sa.Column(
            "dropped", sa.Text(), nullable=False, comment="JSON list of event ids stored before"
        ),
        sa.Column("sha256", sa.Text(), nullable=False, comment="of the rows, hex"),
        sa.Column(
            "table_epoch", sa.BigInteger(), nullable=False, comment="of the ClickHouse tables"
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="OPEN | DONE"),
        sa.Column("made_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sink_plan")),
    )
    op.create_index(
        "ix_sink_plan_topic_partition_last_offset",
        "sink_plan",
        ["topic", "partition", "last_offset"],
        unique=False,
    )
    op.create_index(
        "uq_sink_plan_open",
        "sink_plan",
        ["topic", "partition"],
        unique=True,
        sqlite_where=sa.text("state = 'OPEN'"),
        postgresql_where=sa.text("state = 'OPEN'"),
    )
    op.create_table(
        "sink_position",
        sa.Column("topic", sa.Text(), nullable=False, comment="of the bus"),
        sa.Column(
            "partition", sa.Integer(), autoincrement=False, nullable=False, comment="of the topic"
        ),
        sa.Column(
            "next_offset", sa.BigInteger(), nullable=False, comment="first offset in no plan"
        ),
        sa.Column(
            "last_event_id", sa.Text(), nullable=False, comment="at next_offset - 1; empty: none"
        ),
        sa.Column("owner_epoch", sa.BigInteger(), nullable=False, comment="grows with every claim"),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_sink_position")),
    )
    op.create_table(
        "sql_outbox",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="shipped in this order",
        ),
        sa.Column("event_id", sa.Text(), nullable=False, comment="of the event"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="the partition key"),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="the event, JSON"),
        sa.Column("shipped", sa.Boolean(), nullable=False, comment="the bus has it"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sql_outbox")),
        sa.UniqueConstraint("event_id", name=op.f("uq_sql_outbox_event_id")),
    )
    op.create_index(
        "ix_sql_outbox_unshipped",
        "sql_outbox",
        ["id"],
        unique=False,
        sqlite_where=sa.text("NOT shipped"),
        postgresql_where=sa.text("NOT shipped"),
    )
    op.create_table(
        "account",
        sa.Column("id", sa.Text(), nullable=False, comment="acct_<hex>"),
        sa.Column("name", sa.Text(), nullable=False, comment="unique, as the operator calls it"),
        sa.Column("kind", sa.Text(), nullable=False, comment="individual | org"),
        sa.Column("status", sa.Text(), nullable=False, comment="active | paused | disabled"),
        sa.Column(
            "wallet_limit_id",
            sa.Text(),
            nullable=False,
            comment="the limit row that every key of this account must fit",
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.ForeignKeyConstraint(
            ["wallet_limit_id"], ["limit_row.id"], name=op.f("fk_account_wallet_limit_id_limit_row")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "price_schedule",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="of two with equal time, the later one rules",
        ),
        sa.Column(
            "price_version_id",
            sa.Text(),
            nullable=False,
            comment="in force from effective_at until the next row",
        ),
        sa.Column("effective_at", sa.BigInteger(), nullable=False, comment="from when"),
        sa.ForeignKeyConstraint(
            ["price_version_id"],
            ["price_version.id"],
            name=op.f("fk_price_schedule_price_version_id_price_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_schedule")),
    )
    op.create_index(
        op.f("ix_price_schedule_effective_at"), "price_schedule", ["effective_at"], unique=False
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text(), nullable=False, comment="key_<hex>"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="who pays"),
        sa.Column("name", sa.Text(), nullable=False, comment="for people; not unique"),
        sa.Column("masked", sa.Text(), nullable=False, comment="the secret as it may be shown"),
        sa.Column("secret_sha256", sa.Text(), nullable=False, comment="hex; the lookup"),
        sa.Column(
            "secret_sealed", sa.Text(), nullable=False, comment="the secret, Fernet-encrypted"
        ),
        sa.Column("group_name", sa.Text(), nullable=False, comment="routing_group.name"),
        sa.Column("status", sa.Text(), nullable=False, comment="active | revoked | disabled"),
        sa.Column(
            "quota_limit_id",
            sa.Text(),
            nullable=False,
            comment="the key's lifetime quota; its limit is NULL when it has none",
        ),
        sa.Column("expires_at", sa.BigInteger(), nullable=True, comment="NULL: never"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column(
            "revoked_at",
            sa.BigInteger(),
            nullable=True,
            comment="database time; NULL while not revoked",
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_api_key_account_id_account")
        ),
        sa.ForeignKeyConstraint(
            ["quota_limit_id"], ["limit_row.id"], name=op.f("fk_api_key_quota_limit_id_limit_row")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_key_secret_sha256")),
    )
    op.create_index(op.f("ix_api_key_account_id"), "api_key", ["account_id"], unique=False)
    op.create_table(
        "wallet_movement",
        sa.Column("id", sa.Text(), nullable=False, comment="mov_<hex>"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="whose wallet"),
        sa.Column("movement", sa.Text(), nullable=False, comment="schemas.events.MOVEMENTS"),
        sa.Column(
            "amount_nano", sa.BigInteger(), nullable=False, comment="signed: a debit is negative"
        ),
        sa.Column(
            "external_id",
            sa.Text(),
            nullable=True,
            comment="unique per account; NULL: none was given",
        ),
        sa.Column("note", sa.Text(), nullable=False, comment="for people"),
        sa.Column("actor", sa.Text(), nullable=False, comment="who moved it"),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_wallet_movement_account_id_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_wallet_movement")),
        sa.UniqueConstraint(
            "account_id", "external_id", name=op.f("uq_wallet_movement_account_id_external_id")
        ),
    )
    op.create_table(
        "lease",
        sa.Column("id", sa.Text(), nullable=False, comment="lease_<hex>"),
        sa.Column("incarnation_id", sa.Text(), nullable=False, comment="holder"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="who pays"),
        sa.Column("key_id", sa.Text(), nullable=False, comment="whose budget"),
        sa.Column(
            "limit_ids",
            sa.Text(),
            nullable=False,
            comment="JSON list; settlement touches exactly these",
        ),
        sa.Column(
            "amount_nano", sa.BigInteger(), nullable=False, comment="granted less given back"
        ),
        sa.Column(
            "consumed_nano", sa.BigInteger(), nullable=False, comment="charged by settled events"
        ),
        sa.Column(
            "reserved_nano", sa.BigInteger(), nullable=False, comment="held, as last reported"
        ),
        sa.Column(
            "spent_nano", sa.BigInteger(), nullable=False, comment="spent in all, as last reported"
        ),
        sa.Column(
            "events_applied", sa.BigInteger(), nullable=False, comment="events settled so far"
        ),
        sa.Column(
            "events_total",
            sa.BigInteger(),
            nullable=True,
            comment="events in all; NULL until lease_closed came",
        ),
        sa.Column(
            "grant_no", sa.BigInteger(), nullable=False, comment="number of the last grant, from 1"
        ),
        sa.Column(
            "grant_nano", sa.BigInteger(), nullable=False, comment="amount of the last grant"
        ),
        sa.Column(
            "give_no",
            sa.BigInteger(),
            nullable=False,
            comment="number of the last give-back; 0: none",
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="open | closing | closed"),
        sa.Column("opened_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column("closed_at", sa.BigInteger(), nullable=True, comment="database time"),
        sa.CheckConstraint("consumed_nano <= amount_nano", name=op.f("ck_lease_consumed")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_lease_account_id_account")
        ),
        sa.ForeignKeyConstraint(
            ["incarnation_id"], ["incarnation.id"], name=op.f("fk_lease_incarnation_id_incarnation")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_lease_key_id_api_key")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lease")),
    )
    op.create_index(
        "ix_lease_account_live",
        "lease",
        ["account_id"],
        unique=False,
        sqlite_where=sa.text("state <> 'closed'"),
        postgresql_where=sa.text("state <> 'closed'"),
    )
    op.create_index(
        "ix_lease_incarnation_live",
        "lease",
        ["incarnation_id"],
        unique=False,
        sqlite_where=sa.text("state <> 'closed'"),
        postgresql_where=sa.text("state <> 'closed'"),
    )
