"""Batches: many requests in one file or call, each sent as a request of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_batch()
    create_batch_line()


def create_batch() -> None:
    op.create_table(
        "batch",
        sa.Column(
            "id", sa.Text(), nullable=False, comment="26 characters; batch_<id>, msgbatch_<id>"
        ),
        sa.Column("account_id", sa.Text(), nullable=False, comment="who pays"),
        sa.Column("key_id", sa.Text(), nullable=False, comment="who asked"),
        sa.Column("endpoint", sa.Text(), nullable=False, comment="path to which every line goes"),
        sa.Column(
            "input_id", sa.Text(), nullable=False, comment="the client's upload; empty: none"
        ),
        sa.Column(
            "lines_id", sa.Text(), nullable=False, comment="upload that keeps the lines' bytes"
        ),
        sa.Column(
            "headers", sa.Text(), nullable=False, comment="JSON object, sent with every line"
        ),
        sa.Column(
            "extra", sa.Text(), nullable=False, comment="JSON object of the client's own (metadata)"
        ),
        sa.Column("phase", sa.Text(), nullable=False, comment="services.core.batches.Phase"),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            nullable=False,
            comment="fencing token: grows with every claim",
        ),
        sa.Column(
            "claims", sa.Integer(), nullable=False, comment="claims since it was last given back"
        ),
        sa.Column(
            "next_at",
            sa.BigInteger(),
            nullable=True,
            comment="when it is due; NULL: nothing is left to do",
        ),
        sa.Column(
            "total", sa.Integer(), nullable=False, comment="lines; 0 until they were counted"
        ),
        sa.Column("succeeded", sa.Integer(), nullable=False, comment="lines that ended so"),
        sa.Column("errored", sa.Integer(), nullable=False, comment="lines that ended so"),
        sa.Column("canceled", sa.Integer(), nullable=False, comment="lines that ended so"),
        sa.Column("expired", sa.Integer(), nullable=False, comment="lines that ended so"),
        sa.Column(
            "errors", sa.Text(), nullable=False, comment="JSON list: what is wrong with the input"
        ),
        sa.Column(
            "output_id", sa.Text(), nullable=False, comment="upload of the answers; empty: none"
        ),
        sa.Column(
            "error_id", sa.Text(), nullable=False, comment="upload of what failed; empty: none"
        ),
        sa.Column("keep_s", sa.BigInteger(), nullable=False, comment="its files are kept so long"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column(
            "expires_at", sa.BigInteger(), nullable=False, comment="no line is sent after it"
        ),
        sa.Column(
            "started_at", sa.BigInteger(), nullable=True, comment="when its input was found good"
        ),
        sa.Column(
            "cancel_at",
            sa.BigInteger(),
            nullable=True,
            comment="when cancelling was asked; NULL: not",
        ),
        sa.Column(
            "finishing_at", sa.BigInteger(), nullable=True, comment="when its last line had ended"
        ),
        sa.Column("ended_at", sa.BigInteger(), nullable=True, comment="when its files were there"),
        sa.Column(
            "deleted_at", sa.BigInteger(), nullable=True, comment="when its client deleted it"
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_batch_key_id_api_key")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_batch_account_id_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
    )
    op.create_index(
        "ix_batch_due",
        "batch",
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.create_index(
        "ix_batch_listed",
        "batch",
        ["account_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_batch_open",
        "batch",
        ["account_id"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )


def create_batch_line() -> None:
    op.create_table(
        "batch_line",
        sa.Column("batch_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column(
            "no", sa.Integer(), autoincrement=False, nullable=False, comment="in the input, from 1"
        ),
        sa.Column("custom_id", sa.Text(), nullable=False, comment="the client's name for it"),
        sa.Column("place", sa.BigInteger(), nullable=False, comment="its first byte in the input"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="its size there"),
        sa.Column("state", sa.Text(), nullable=False, comment="services.core.batches.LineState"),
        sa.Column(
            "try_no", sa.Integer(), nullable=False, comment="of the present or last try; 0: none"
        ),
        sa.Column(
            "taken_by",
            sa.Text(),
            nullable=False,
            comment="incarnation that admits the try; empty: none",
        ),
        sa.Column(
            "status", sa.Integer(), nullable=False, comment="HTTP, of its answer; 0: it has none"
        ),
        sa.Column(
            "answer",
            sa.Text(),
            nullable=False,
            comment="SHA-256 of the stored answer, hex; empty: none",
        ),
        sa.Column(
            "code", sa.Text(), nullable=False, comment="why there is no answer; empty: there is one"
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batch.id"], name=op.f("fk_batch_line_batch_id_batch")
        ),
        sa.PrimaryKeyConstraint("batch_id", "no", name=op.f("pk_batch_line")),
    )
    op.create_index(
        "ix_batch_line_state",
        "batch_line",
        ["batch_id", "state", "no"],
        unique=False,
    )
