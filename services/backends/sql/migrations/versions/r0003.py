"""Rates: requests and tokens of the last minute, slots of concurrency."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rate",
        sa.Column(
            "subject",
            sa.Text(),
            nullable=False,
            comment="account, key or member; locked in order",
        ),
        sa.Column(
            "requests",
            sa.Text(),
            nullable=False,
            comment="JSON {bucket: starts} of the last minute",
        ),
        sa.Column(
            "tokens", sa.Text(), nullable=False, comment="JSON {bucket: tokens} of the last minute"
        ),
        sa.Column(
            "recall_at",
            sa.BigInteger(),
            nullable=True,
            comment="when a request last waited for idle slots",
        ),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_rate")),
    )
    op.create_table(
        "rate_slot",
        sa.Column("subject", sa.Text(), nullable=False, comment="whose"),
        sa.Column(
            "incarnation_id",
            sa.Text(),
            nullable=False,
            comment="the worker; its slots count while it is open",
        ),
        sa.Column("slots", sa.Integer(), nullable=False, comment="of concurrency, in use or idle"),
        sa.Column(
            "round_no",
            sa.BigInteger(),
            nullable=False,
            comment="the worker's round that said so",
        ),
        sa.ForeignKeyConstraint(
            ["subject"], ["rate.subject"], name=op.f("fk_rate_slot_subject_rate")
        ),
        sa.ForeignKeyConstraint(
            ["incarnation_id"],
            ["incarnation.id"],
            name=op.f("fk_rate_slot_incarnation_id_incarnation"),
        ),
        sa.PrimaryKeyConstraint("subject", "incarnation_id", name=op.f("pk_rate_slot")),
    )
    op.create_index("ix_rate_slot_incarnation_id", "rate_slot", ["incarnation_id"])
