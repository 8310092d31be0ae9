"""Webhook endpoints of an account, and whose URL a delivery goes to."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_webhook_endpoint()
    op.add_column(
        "webhook_delivery",
        sa.Column(
            "endpoint_id",
            sa.Text(),
            nullable=True,
            comment="whose URL it is; NULL: the job's own",
        ),
    )
    op.create_index(
        "ix_webhook_delivery_endpoint",
        "webhook_delivery",
        ["endpoint_id", "created_at", "id"],
        unique=False,
    )


def create_webhook_endpoint() -> None:
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.Text(), nullable=False, comment="whk_<hex>"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("url", sa.Text(), nullable=False, comment="where its events are sent"),
        sa.Column("events", sa.Text(), nullable=False, comment="JSON list: job.completed, ..."),
        sa.Column("description", sa.Text(), nullable=False, comment="the client's own words"),
        sa.Column("status", sa.Text(), nullable=False, comment="active | disabled"),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=False,
            comment="why it is disabled; empty: by its account",
        ),
        sa.Column(
            "secret_no",
            sa.Integer(),
            nullable=False,
            comment="grows with every rotation, from 1",
        ),
        sa.Column(
            "rotated_at",
            sa.BigInteger(),
            nullable=True,
            comment="when; the secret before signs a day longer",
        ),
        sa.Column(
            "failing_at",
            sa.BigInteger(),
            nullable=True,
            comment="since when nothing was taken; NULL: it is well",
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column(
            "updated_at", sa.BigInteger(), nullable=False, comment="when its account changed it"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_webhook_endpoint_account_id_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoint")),
        sa.UniqueConstraint("account_id", "url", name=op.f("uq_webhook_endpoint_account_id_url")),
    )
