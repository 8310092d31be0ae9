"""Hosts that are gone are found: when a relay last had the files of a worker."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "incarnation",
        sa.Column(
            "seen_at",
            sa.BigInteger(),
            nullable=True,
            comment="when a relay last had its files; NULL: never",
        ),
    )
