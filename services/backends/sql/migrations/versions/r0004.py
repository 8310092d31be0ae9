"""Media channels, jobs and what belongs to them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "channel",
        sa.Column(
            "provider",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="of a media channel: its adapter; empty: text",
        ),
    )
    create_job()
    create_attempt()
    create_artifact()
    create_job_event()
    create_idempotency()
    create_leader()
    create_upload()
    create_webhook_delivery()


def create_job() -> None:
    op.create_table(
        "job",
        sa.Column(
            "id",
            sa.Text(),
            nullable=False,
            comment="26 characters; job_<id> and task_<id> on wires",
        ),
        sa.Column("request_id", sa.Text(), nullable=False, comment="of its events"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="who pays"),
        sa.Column("key_id", sa.Text(), nullable=False, comment="who asked"),
        sa.Column("source", sa.Text(), nullable=False, comment="path of the route that made it"),
        sa.Column(
            "external_id",
            sa.Text(),
            nullable=False,
            comment="the client's name for it; empty: none",
        ),
        sa.Column("kind", sa.Text(), nullable=False, comment="services.core.media.KINDS"),
        sa.Column("model", sa.Text(), nullable=False, comment="as asked"),
        sa.Column("priced_as", sa.Text(), nullable=False, comment="canonical model id"),
        sa.Column("group_name", sa.Text(), nullable=False, comment="of the key, when it asked"),
        sa.Column("price_version", sa.Text(), nullable=False, comment="pinned when it asked"),
        sa.Column("params", sa.Text(), nullable=False, comment="JSON, canonical; {} once erased"),
        sa.Column("body_bytes", sa.BigInteger(), nullable=False, comment="of the request"),
        sa.Column("phase", sa.Text(), nullable=False, comment="services.core.jobs.Phase"),
        sa.Column(
            "version", sa.BigInteger(), nullable=False, comment="grows with every visible change"
        ),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            nullable=False,
            comment="fencing token: grows with every claim",
        ),
        sa.Column("claims", sa.Integer(), nullable=False, comment="claims since a step last ended"),
        sa.Column(
            "next_at", sa.BigInteger(), nullable=True, comment="when it is due; NULL: finished"
        ),
        sa.Column(
            "active", sa.Boolean(), nullable=False, comment="counts against concurrency limits"
        ),
        sa.Column(
            "priority", sa.Integer(), nullable=False, comment="minutes of head start in the queue"
        ),
        sa.Column(
            "channel", sa.Text(), nullable=False, comment="of the present attempt; empty: none"
        ),
        sa.Column(
            "attempt_no", sa.Integer(), nullable=False, comment="of the present attempt; 0: none"
        ),
        sa.Column(
            "not_sent", sa.Integer(), nullable=False, comment="attempts in a row that were not sent"
        ),
        sa.Column("hold_nano", sa.BigInteger(), nullable=False, comment="held while it is open"),
        sa.Column("lease_id", sa.Text(), nullable=False, comment="the hold's lease"),
        sa.Column(
            "start_by",
            sa.BigInteger(),
            nullable=True,
            comment="expires unless started by then; NULL: no bound",
        ),
        sa.Column("deadline_at", sa.BigInteger(), nullable=False, comment="expires then"),
        sa.Column("eta_s", sa.Integer(), nullable=False, comment="seconds that it should take"),
        sa.Column(
            "progress_ppm",
            sa.BigInteger(),
            nullable=True,
            comment="as the upstream told; NULL: not told",
        ),
        sa.Column(
            "cancel_at",
            sa.BigInteger(),
            nullable=True,
            comment="when cancelling was asked; NULL: not",
        ),
        sa.Column(
            "cancel_outcome", sa.Text(), nullable=False, comment="none | confirmed | too_late | ..."
        ),
        sa.Column(
            "error_code", sa.Text(), nullable=False, comment="services.core.jobs.Fault; empty: none"
        ),
        sa.Column("error_message", sa.Text(), nullable=False, comment="for people"),
        sa.Column("callback_url", sa.Text(), nullable=False, comment="empty: none"),
        sa.Column(
            "extra", sa.Text(), nullable=False, comment="JSON object of the client's own (metadata)"
        ),
        sa.Column(
            "retention_s", sa.BigInteger(), nullable=False, comment="artifacts are kept so long"
        ),
        sa.Column("on_late", sa.Text(), nullable=False, comment="attach | discard"),
        sa.Column(
            "retry_of", sa.Text(), nullable=False, comment="the job that it repeats; empty: none"
        ),
        sa.Column("units", sa.Text(), nullable=False, comment="JSON per class: held, then charged"),
        sa.Column("charged_nano", sa.BigInteger(), nullable=False, comment="0 unless completed"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column(
            "started_at", sa.BigInteger(), nullable=True, comment="when its first attempt began"
        ),
        sa.Column("finished_at", sa.BigInteger(), nullable=True, comment="when it ended"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_job_account_id_account")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_job_key_id_api_key")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index(
        "ix_job_active",
        "job",
        ["account_id"],
        unique=False,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_index(
        "ix_job_channel",
        "job",
        ["channel"],
        unique=False,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_index(
        "ix_job_due",
        "job",
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.create_index("ix_job_listed", "job", ["account_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_job_open",
        "job",
        ["account_id"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )


def create_attempt() -> None:
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("no", sa.Integer(), autoincrement=False, nullable=False, comment="from 1"),
        sa.Column("channel", sa.Text(), nullable=False, comment="where it was sent"),
        sa.Column("upstream_model", sa.Text(), nullable=False, comment="as sent"),
        sa.Column(
            "client_ref", sa.Text(), nullable=False, comment="our name for it at the upstream"
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="services.core.jobs.AttemptState"),
        sa.Column(
            "upstream_id", sa.Text(), nullable=False, comment="empty until the upstream told it"
        ),
        sa.Column("links", sa.Text(), nullable=False, comment="JSON, of the provider's adapter"),
        sa.Column("polls", sa.Integer(), nullable=False, comment="how often it was asked for"),
        sa.Column(
            "gone", sa.Integer(), nullable=False, comment="times in a row that it was not known"
        ),
        sa.Column("gone_at", sa.BigInteger(), nullable=True, comment="since when"),
        sa.Column(
            "status", sa.Integer(), nullable=False, comment="HTTP, of the last answer; 0: none"
        ),
        sa.Column("message", sa.Text(), nullable=False, comment="what the upstream said, cut"),
        sa.Column(
            "provider_cost_nano", sa.BigInteger(), nullable=False, comment="what it may cost us"
        ),
        sa.Column(
            "watch_until",
            sa.BigInteger(),
            nullable=True,
            comment="asked for a late result until then",
        ),
        sa.Column(
            "sent_at",
            sa.BigInteger(),
            nullable=False,
            comment="when the create was about to be sent",
        ),
        sa.Column("taken_at", sa.BigInteger(), nullable=True, comment="when the upstream had it"),
        sa.Column("ended_at", sa.BigInteger(), nullable=True, comment="when it was over"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_attempt_job_id_job")),
        sa.PrimaryKeyConstraint("job_id", "no", name=op.f("pk_attempt")),
    )
    op.create_index(
        "ix_attempt_watched",
        "attempt",
        ["watch_until"],
        unique=False,
        sqlite_where=sa.text("watch_until IS NOT NULL"),
        postgresql_where=sa.text("watch_until IS NOT NULL"),
    )


def create_artifact() -> None:
    op.create_table(
        "artifact",
        sa.Column("id", sa.Text(), nullable=False, comment="art_<26 characters>"),
        sa.Column("job_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("place", sa.Integer(), nullable=False, comment="among the job's outputs, from 0"),
        sa.Column("kind", sa.Text(), nullable=False, comment="image | video | audio | text | json"),
        sa.Column("mime", sa.Text(), nullable=False, comment="found from its bytes"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="size"),
        sa.Column("sha256", sa.Text(), nullable=False, comment="hex; its name in the store"),
        sa.Column("width", sa.Integer(), nullable=True, comment="pixels"),
        sa.Column("height", sa.Integer(), nullable=True, comment="pixels"),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True, comment="of video and audio"),
        sa.Column(
            "late", sa.Boolean(), nullable=False, comment="came after the job had ended; free"
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column("expires_at", sa.BigInteger(), nullable=False, comment="kept until then"),
        sa.Column(
            "deleted_at", sa.BigInteger(), nullable=True, comment="when its bytes were let go"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_artifact_job_id_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
        sa.UniqueConstraint("job_id", "place", name=op.f("uq_artifact_job_id_place")),
    )
    op.create_index(op.f("ix_artifact_expires_at"), "artifact", ["expires_at"], unique=False)
    op.create_index(op.f("ix_artifact_job_id"), "artifact", ["job_id"], unique=False)
    op.create_index(op.f("ix_artifact_sha256"), "artifact", ["sha256"], unique=False)


def create_job_event() -> None:
    op.create_table(
        "job_event",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="in order of writing",
        ),
        sa.Column("job_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("seq", sa.Integer(), nullable=False, comment="dense per job, from 1"),
        sa.Column("type", sa.Text(), nullable=False, comment="state | progress | artifact | done"),
        sa.Column("data", sa.Text(), nullable=False, comment="JSON"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_event_job_id_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_event")),
        sa.UniqueConstraint("job_id", "seq", name=op.f("uq_job_event_job_id_seq")),
    )


def create_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.Text(), nullable=False, comment="key:<id> | account:<id>"),
        sa.Column(
            "name", sa.Text(), nullable=False, comment="ext:<external id> | key:<Idempotency-Key>"
        ),
        sa.Column(
            "fingerprint", sa.Text(), nullable=False, comment="SHA-256 of what was asked, hex"
        ),
        sa.Column("job_id", sa.Text(), nullable=False, comment="what was made"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.PrimaryKeyConstraint("scope", "name", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)


def create_leader() -> None:
    op.create_table(
        "leader",
        sa.Column("name", sa.Text(), nullable=False, comment="what is led"),
        sa.Column("holder", sa.Text(), nullable=False, comment="one run of one process"),
        sa.Column("until_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leader")),
    )


def create_upload() -> None:
    op.create_table(
        "upload",
        sa.Column("id", sa.Text(), nullable=False, comment="file_<26 characters>"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("name", sa.Text(), nullable=False, comment="as the client called it"),
        sa.Column("purpose", sa.Text(), nullable=False, comment="as the client said"),
        sa.Column("mime", sa.Text(), nullable=False, comment="found from its bytes"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="size"),
        sa.Column("sha256", sa.Text(), nullable=False, comment="hex; its name in the store"),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True, comment="of audio and video"),
        sa.Column("created_at", sa.BigInteger(), nullable=False, comment="database time"),
        sa.Column("expires_at", sa.BigInteger(), nullable=False, comment="kept until then"),
        sa.Column(
            "deleted_at", sa.BigInteger(), nullable=True, comment="when its bytes were let go"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_upload_account_id_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
    )
    op.create_index(op.f("ix_upload_expires_at"), "upload", ["expires_at"], unique=False)
    op.create_index("ix_upload_listed", "upload", ["account_id", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_upload_sha256"), "upload", ["sha256"], unique=False)


def create_webhook_delivery() -> None:
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.Text(), nullable=False, comment="whd_<hex>; webhook-id of every try"),
        sa.Column("job_id", sa.Text(), nullable=False, comment="whose"),
        sa.Column("account_id", sa.Text(), nullable=False, comment="whose"),
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
            ["account_id"], ["account.id"], name=op.f("fk_webhook_delivery_account_id_account")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_webhook_delivery_job_id_job")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_delivery")),
    )
    op.create_index(
        "ix_webhook_delivery_due",
        "webhook_delivery",
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_webhook_delivery_job_id"), "webhook_delivery", ["job_id"], unique=False
    )
