"""The tables of the batch service. `*_at` microseconds since the epoch, UTC, database time.

A job is due when `next_at` has come. A claim moves `next_at` ahead by the time a step may take and
raises `epoch`; every later write of that step names the epoch, so a worker that was too slow writes
nothing. A job whose worker died is due again by itself; a finished one has no `next_at`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from services.backends.sql.tables import metadata

_Serial = BigInteger().with_variant(Integer, "sqlite")
_ACTIVE = text("active")
IS_ACTIVE = text("job.active")  # as the indexes say it: `active = 1`, which SQLAlchemy makes of the
# column on SQLite, is another condition there and would go over every job there ever was
_WATCHED = text("watch_until IS NOT NULL")
_OPEN = text("next_at IS NOT NULL")
_KEPT = text("deleted_at IS NULL")

job = Table(
    "job",
    metadata,
    Column("id", Text, primary_key=True, comment="26 characters; job_<id> and task_<id> on wires"),
    Column("request_id", Text, nullable=False, comment="of its events"),
    Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="who pays"),
    Column("key_id", Text, ForeignKey("api_key.id"), nullable=False, comment="who asked"),
    Column("source", Text, nullable=False, comment="path of the route that made it"),
    Column("external_id", Text, nullable=False, comment="the client's name for it; empty: none"),
    Column("kind", Text, nullable=False, comment="services.core.media.KINDS"),
    Column("model", Text, nullable=False, comment="as asked"),
    Column("priced_as", Text, nullable=False, comment="canonical model id"),
    Column("group_name", Text, nullable=False, comment="of the key, when it asked"),
    Column("price_version", Text, nullable=False, comment="pinned when it asked"),
    Column("params", Text, nullable=False, comment="JSON, canonical; {} once erased"),
    Column("body_bytes", BigInteger, nullable=False, comment="of the request"),
    Column("phase", Text, nullable=False, comment="services.core.jobs.Phase"),
    Column("version", BigInteger, nullable=False, comment="grows with every visible change"),
    Column("epoch", BigInteger, nullable=False, comment="fencing token: grows with every claim"),
    Column("claims", Integer, nullable=False, comment="claims since a step last ended"),
    Column("next_at", BigInteger, comment="when it is due; NULL: finished"),
    Column("active", Boolean, nullable=False, comment="counts against concurrency limits"),
    Column("priority", Integer, nullable=False, comment="minutes of head start in the queue"),
    Column("channel", Text, nullable=False, comment="of the present attempt; empty: none"),
    Column("attempt_no", Integer, nullable=False, comment="of the present attempt; 0: none"),
    Column("not_sent", Integer, nullable=False, comment="attempts in a row that were not sent"),
    Column("hold_nano", BigInteger, nullable=False, comment="held while it is open"),
    Column("lease_id", Text, nullable=False, comment="the hold's lease"),
    Column("start_by", BigInteger, comment="expires unless started by then; NULL: no bound"),
    Column("deadline_at", BigInteger, nullable=False, comment="expires then"),
    Column("eta_s", Integer, nullable=False, comment="seconds that it should take"),
    Column("progress_ppm", BigInteger, comment="as the upstream told; NULL: not told"),
    Column("cancel_at", BigInteger, comment="when cancelling was asked; NULL: not"),
    Column("cancel_outcome", Text, nullable=False, comment="none | confirmed | too_late | ..."),
    Column("error_code", Text, nullable=False, comment="services.core.jobs.Fault; empty: none"),
    Column("error_message", Text, nullable=False, comment="for people"),
    Column("callback_url", Text, nullable=False, comment="empty: none"),
    Column("extra", Text, nullable=False, comment="JSON object of the client's own (metadata)"),
    Column("retention_s", BigInteger, nullable=False, comment="artifacts are kept so long"),
    Column("on_late", Text, nullable=False, comment="attach | discard"),
    Column("retry_of", Text, nullable=False, comment="the job that it repeats; empty: none"),
    Column("units", Text, nullable=False, comment="JSON per class: held, then charged"),
    Column("charged_nano", BigInteger, nullable=False, comment="0 unless completed"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    Column("started_at", BigInteger, comment="when its first attempt began"),
    Column("finished_at", BigInteger, comment="when it ended"),
    Index("ix_job_due", "next_at", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_job_listed", "account_id", "created_at", "id"),
    Index("ix_job_open", "account_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_job_active", "account_id", sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
    Index("ix_job_channel", "channel", sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
)

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", Text, ForeignKey("job.id"), primary_key=True, comment="whose"),
    Column("no", Integer, primary_key=True, autoincrement=False, comment="from 1"),
    Column("channel", Text, nullable=False, comment="where it was sent"),
    Column("upstream_model", Text, nullable=False, comment="as sent"),
    Column("client_ref", Text, nullable=False, comment="our name for it at the upstream"),
    Column("state", Text, nullable=False, comment="services.core.jobs.AttemptState"),
    Column("upstream_id", Text, nullable=False, comment="empty until the upstream told it"),
    Column("links", Text, nullable=False, comment="JSON, of the provider's adapter"),
    Column("polls", Integer, nullable=False, comment="how often it was asked for"),
    Column("gone", Integer, nullable=False, comment="times in a row that it was not known"),
    Column("gone_at", BigInteger, comment="since when"),
    Column("status", Integer, nullable=False, comment="HTTP, of the last answer; 0: none"),
    Column("message", Text, nullable=False, comment="what the upstream said, cut"),
    Column("provider_cost_nano", BigInteger, nullable=False, comment="what it may cost us"),
    Column("watch_until", BigInteger, comment="asked for a late result until then"),
    Column("sent_at", BigInteger, nullable=False, comment="when the create was about to be sent"),
    Column("taken_at", BigInteger, comment="when the upstream had it"),
    Column("ended_at", BigInteger, comment="when it was over"),
    Index("ix_attempt_watched", "watch_until", sqlite_where=_WATCHED, postgresql_where=_WATCHED),
)

artifact = Table(
    "artifact",
    metadata,
    Column("id", Text, primary_key=True, comment="art_<26 characters>"),
    Column("job_id", Text, ForeignKey("job.id"), nullable=False, index=True, comment="whose"),
    Column("place", Integer, nullable=False, comment="among the job's outputs, from 0"),
    Column("kind", Text, nullable=False, comment="image | video | audio | text | json"),
    Column("mime", Text, nullable=False, comment="found from its bytes"),
    Column("bytes", BigInteger, nullable=False, comment="size"),
    Column("sha256", Text, nullable=False, index=True, comment="hex; its name in the store"),
    Column("width", Integer, comment="pixels"),
    Column("height", Integer, comment="pixels"),
    Column("duration_ms", BigInteger, comment="of video and audio"),
    Column("late", Boolean, nullable=False, comment="came after the job had ended; free"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    Column("expires_at", BigInteger, nullable=False, index=True, comment="kept until then"),
    Column("deleted_at", BigInteger, comment="when its bytes were let go"),
    UniqueConstraint("job_id", "place"),
    Index("ix_artifact_kept", "expires_at", sqlite_where=_KEPT, postgresql_where=_KEPT),
)

job_event = Table(
    "job_event",
    metadata,
    Column("id", _Serial, primary_key=True, comment="in order of writing"),
    Column("job_id", Text, ForeignKey("job.id"), nullable=False, comment="whose"),
    Column("seq", Integer, nullable=False, comment="dense per job, from 1"),
    Column("type", Text, nullable=False, comment="state | progress | artifact | done"),
    Column("data", Text, nullable=False, comment="JSON"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    UniqueConstraint("job_id", "seq"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", Text, primary_key=True, comment="key:<id> | account:<id>"),
    Column("name", Text, primary_key=True, comment="ext:<external id> | key:<Idempotency-Key>"),
    Column("fingerprint", Text, nullable=False, comment="SHA-256 of what was asked, hex"),
    Column("job_id", Text, nullable=False, comment="what was made"),
    Column("created_at", BigInteger, nullable=False, index=True, comment="database time"),
)

leader = Table(
    "leader",
    metadata,
    Column("name", Text, primary_key=True, comment="what is led"),
    Column("holder", Text, nullable=False, comment="one run of one process"),
    Column("until_at", BigInteger, nullable=False, comment="database time"),
)

upload = Table(
    "upload",
    metadata,
    Column("id", Text, primary_key=True, comment="file_<26 characters>"),
    Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="whose"),
    Column("name", Text, nullable=False, comment="as the client called it"),
    Column("purpose", Text, nullable=False, comment="as the client said"),
    Column("mime", Text, nullable=False, comment="found from its bytes"),
    Column("bytes", BigInteger, nullable=False, comment="size"),
    Column("sha256", Text, nullable=False, index=True, comment="hex; its name in the store"),
    Column("duration_ms", BigInteger, comment="of audio and video"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    Column("expires_at", BigInteger, nullable=False, index=True, comment="kept until then"),
    Column("deleted_at", BigInteger, comment="when its bytes were let go"),
    Index("ix_upload_listed", "account_id", "created_at", "id"),
    Index("ix_upload_kept", "expires_at", sqlite_where=_KEPT, postgresql_where=_KEPT),
)


def _deliveries(name: str, *of: Column[str]) -> Table:
    """A table of deliveries; `of` is what they tell of."""
    return Table(
        name,
        metadata,
        Column("id", Text, primary_key=True, comment="whd_<hex>; webhook-id of every try"),
        *of,
        Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="whose"),
        Column("endpoint_id", Text, comment="whose URL it is; NULL: the job's own"),
        Column("url", Text, nullable=False, comment="as the client gave it"),
        Column("type", Text, nullable=False, comment="job.completed, ..."),
        Column("body", Text, nullable=False, comment="JSON, as it is sent"),
        Column(
            "epoch", BigInteger, nullable=False, comment="fencing token: grows with every claim"
        ),
        Column("next_at", BigInteger, comment="when it is tried next; NULL: over"),
        Column("tries", Integer, nullable=False, comment="so far"),
        Column("status", Integer, nullable=False, comment="HTTP, of the last try; 0: no answer"),
        Column("message", Text, nullable=False, comment="what went wrong last, cut"),
        Column("created_at", BigInteger, nullable=False, comment="database time"),
        Column("delivered_at", BigInteger, comment="when the receiver said 2xx"),
        Index(f"ix_{name}_due", "next_at", sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index(f"ix_{name}_endpoint", "endpoint_id", "created_at", "id"),
        Index(
            f"ix_{name}_waiting",
            "endpoint_id",
            "next_at",
            sqlite_where=_OPEN,
            postgresql_where=_OPEN,
        ),
    )


delivery = _deliveries(
    "webhook_delivery",
    Column("job_id", Text, ForeignKey("job.id"), nullable=False, index=True, comment="whose"),
)
batch_delivery = _deliveries(
    "webhook_batch_delivery",
    Column("batch_id", Text, ForeignKey("batch.id"), nullable=False, comment="whose"),
)
DELIVERIES = (delivery, batch_delivery)

endpoint = Table(
    "webhook_endpoint",
    metadata,
    Column("id", Text, primary_key=True, comment="whk_<hex>"),
    Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="whose"),
    Column("url", Text, nullable=False, comment="where its events are sent"),
    Column("events", Text, nullable=False, comment="JSON list: job.completed, ..."),
    Column("description", Text, nullable=False, comment="the client's own words"),
    Column("status", Text, nullable=False, comment="active | disabled"),
    Column("reason", Text, nullable=False, comment="why it is disabled; empty: by its account"),
    Column("secret_no", Integer, nullable=False, comment="grows with every rotation, from 1"),
    Column("rotated_at", BigInteger, comment="when; the secret before signs a day longer"),
    Column("failing_at", BigInteger, comment="since when nothing was taken; NULL: it is well"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    Column("updated_at", BigInteger, nullable=False, comment="when its account changed it"),
    UniqueConstraint("account_id", "url"),
)
