"""What is watched and what waits is found without passing what was: events that are still dead, and
deliveries of an endpoint that are not over."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_dead_event_state_reason_id",
        "dead_event",
        ["state", "reason", "id"],
        unique=False,
    )
    for table in ("webhook_delivery", "webhook_batch_delivery"):
        op.create_index(
            f"ix_{table}_waiting",
            table,
            ["endpoint_id", "next_at"],
            unique=False,
            sqlite_where=sa.text("next_at IS NOT NULL"),
            postgresql_where=sa.text("next_at IS NOT NULL"),
        )
