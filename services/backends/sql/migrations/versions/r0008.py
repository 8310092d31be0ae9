"""Whose change made each version of the catalog."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalog_change",
        sa.Column(
            "version",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="that the change made",
        ),
        sa.Column(
            "account_id", sa.Text(), nullable=False, comment="what changed; empty: all may have"
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_catalog_change")),
    )
