"""Members, sub-keys, windows of spend, rates, lists of addresses and models."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RATES = {
    "concurrency": (sa.Integer(), "requests at once; 0: unlimited"),
    "requests_per_min": (sa.BigInteger(), "0: unlimited"),
    "tokens_per_min": (sa.BigInteger(), "0: unlimited"),
}


def upgrade() -> None:
    create_member()
    create_member_model_cap()
    for table in ("account", "api_key"):
        for name, (kind, comment) in RATES.items():
            add(table, name, kind, comment, default="0")
    widen_keys()
    add("limit_row", "window_us", sa.BigInteger(), "length of a rolling window; NULL: no window")
    add("limit_row", "since_at", sa.BigInteger(), "from when the window has counted")
    add("limit_row", "buckets", sa.Text(), "JSON [[number, nano], ...] of 1/60 window each")
    say("limit_row", "kind", "services.core.budgets.KINDS")
    say("limit_row", "subject", "account, key, member or member:model")
    add("lease", "model", sa.Text(), "the capped model; empty: others", default="")
    add("incarnation", "catalog_version", sa.BigInteger(), "that the worker acts on", default="0")


def create_member() -> None:
    op.create_table(
        "member",
        sa.Column("id", sa.Text(), nullable=False, comment="mem_<hex>"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="the org; it pays"),
        sa.Column("name", sa.Text(), nullable=False, comment="unique in the org"),
        sa.Column("email", sa.Text(), nullable=False, comment="empty: none"),
        sa.Column("role", sa.Text(), nullable=False, comment="owner | admin | member"),
        sa.Column("status", sa.Text(), nullable=False, comment="active | disabled"),
        sa.Column(
            "models",
            sa.Text(),
            nullable=False,
            comment="JSON list of models granted; [*]: every one",
        ),
        sa.Column(
            "concurrency", sa.Integer(), nullable=False, comment="requests at once; 0: unlimited"
        ),
        sa.Column(
            "quota_limit_id",
            sa.Text(),
            nullable=False,
            comment="the allotment; its limit is NULL when there is none",
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_member_account_id_account")
        ),
        sa.ForeignKeyConstraint(
            ["quota_limit_id"], ["limit_row.id"], name=op.f("fk_member_quota_limit_id_limit_row")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_member")),
        sa.UniqueConstraint("account_id", "name", name=op.f("uq_member_account_id_name")),
    )


def create_member_model_cap() -> None:
    op.create_table(
        "member_model_cap",
        sa.Column("member_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("model", sa.Text(), nullable=False, comment="canonical model id"),
        sa.Column(
            "limit_id",
            sa.Text(),
            nullable=False,
            comment="what the member may spend on the model; a cap once made keeps its row",
        ),
        sa.ForeignKeyConstraint(
            ["member_id"], ["member.id"], name=op.f("fk_member_model_cap_member_id_member")
        ),
        sa.ForeignKeyConstraint(
            ["limit_id"], ["limit_row.id"], name=op.f("fk_member_model_cap_limit_id_limit_row")
        ),
        sa.PrimaryKeyConstraint("member_id", "model", name=op.f("pk_member_model_cap")),
    )


def widen_keys() -> None:
    refer("api_key", "parent_id", "api_key", "of a sub-key; one level")
    refer("api_key", "member_id", "member", "whose; NULL: the account's")
    add("api_key", "ip_allow", sa.Text(), "JSON CIDRs; []: all", default="[]")
    add("api_key", "ip_deny", sa.Text(), "JSON CIDRs", default="[]")
    add("api_key", "models", sa.Text(), "JSON; []: all of the group", default="[]")
    add(
        "api_key",
        "more_limit_ids",
        sa.Text(),
        "JSON: limits that it must fit beside its quota and the wallet, without caps",
        default="[]",
    )


def add(
    table: str,
    name: str,
    kind: sa.types.TypeEngine[Any],
    comment: str,
    default: str | None = None,
) -> None:
    op.add_column(
        table,
        sa.Column(name, kind, nullable=default is None, server_default=default, comment=comment),
    )


def refer(table: str, name: str, other: str, comment: str) -> None:
    """A new foreign key. Written out: SQLite takes one only with its column."""
    op.execute(
        f"ALTER TABLE {table} ADD COLUMN {name} TEXT "
        f"CONSTRAINT fk_{table}_{name}_{other} REFERENCES {other} (id)"
    )
    op.create_index(op.f(f"ix_{table}_{name}"), table, [name])
    say(table, name, comment)


def say(table: str, name: str, comment: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN {table}.{name} IS '{quoted}'")
