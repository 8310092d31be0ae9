"""What the answers of a batch used, and deliveries that tell of batches."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLE = "webhook_batch_delivery"


def upgrade() -> None:
    op.add_column(
        "batch",
        sa.Column(
            "model",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="of its answers; empty: several",
        ),
    )
    op.add_column(
        "batch",
        sa.Column(
            "usage",
            sa.Text(),
            server_default="{}",
            nullable=False,
            comment="JSON: what its answers used",
        ),
    )
    op.create_table(
        TABLE,
        sa.Column("id", sa.Text(), nullable=False, comment="whd_<hex>; webhook-id of every try"),
        sa.Column("batch_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column(
            "endpoint_id", sa.Text(), nullable=True, comment="whose URL it is; NULL: the job's own"
        ),
        sa.Column("url", sa.Text(), nullable=False, comment="as the client gave it"),
        sa.Column("type", sa.Text(), nullable=False, comment="job.completed, ..."),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON, as it is sent"),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            nullable=False,
            comment="fencing token: grows with every claim",
        ),
        sa.Column(
            "next_at", sa.BigInteger(), nullable=True, comment="when it is tried next; NULL: over"
        ),
        sa.Column("tries", sa.Integer(), nullable=False, comment="so far"),
        sa.Column(
            "status", sa.Integer(), nullable=False, comment="HTTP, of the last try; 0: no answer"
        ),
        sa.Column("message", sa.Text(), nullable=False, comment="what went wrong last, cut"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column(
            "delivered_at", sa.BigInteger(), nullable=True, comment="when the receiver said 2xx"
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batch.id"], name=op.f("fk_webhook_batch_delivery_batch_id_batch")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["account.id"],
            name=op.f("fk_webhook_batch_delivery_account_id_account"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_batch_delivery")),
    )
    op.create_index(
        "ix_webhook_batch_delivery_due",
        TABLE,
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.create_index(
        "ix_webhook_batch_delivery_endpoint",
        TABLE,
        ["endpoint_id", "created_at", "id"],
        unique=False,
    )
    for table in ("artifact", "upload"):  # what is over is found without passing what is gone
        op.create_index(
            f"ix_{table}_kept",
            table,
            ["expires_at"],
            unique=False,
            sqlite_where=sa.text("deleted_at IS NULL"),
            postgresql_where=sa.text("deleted_at IS NULL"),
        )
