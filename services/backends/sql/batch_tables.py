"""The tables of batches. `*_at` microseconds since the epoch, UTC, database time.

A batch is claimed as a job is (`job_tables`): `next_at` is when it is due, `epoch` its fencing
token. A line has a fence of its own: a try is one number, and only the edge worker that wrote its
incarnation beside that number may admit it.
"""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, text

from services.backends.sql.tables import metadata

_OPEN = text("next_at IS NOT NULL")

batch = Table(
    "batch",
    metadata,
    Column("id", Text, primary_key=True, comment="26 characters; batch_<id>, msgbatch_<id>"),
    Column("account_id", Text, ForeignKey("account.id"), nullable=False, comment="who pays"),
    Column("key_id", Text, ForeignKey("api_key.id"), nullable=False, comment="who asked"),
    Column("endpoint", Text, nullable=False, comment="path to which every line goes"),
    Column("input_id", Text, nullable=False, comment="the client's upload; empty: none"),
    Column("lines_id", Text, nullable=False, comment="upload that keeps the lines' bytes"),
    Column("headers", Text, nullable=False, comment="JSON object, sent with every line"),
    Column("extra", Text, nullable=False, comment="JSON object of the client's own (metadata)"),
    Column("phase", Text, nullable=False, comment="services.core.batches.Phase"),
    Column("epoch", BigInteger, nullable=False, comment="fencing token: grows with every claim"),
    Column("claims", Integer, nullable=False, comment="claims since it was last given back"),
    Column("next_at", BigInteger, comment="when it is due; NULL: nothing is left to do"),
    Column("total", Integer, nullable=False, comment="lines; 0 until they were counted"),
    Column("succeeded", Integer, nullable=False, comment="lines that ended so"),
    Column("errored", Integer, nullable=False, comment="lines that ended so"),
    Column("canceled", Integer, nullable=False, comment="lines that ended so"),
    Column("expired", Integer, nullable=False, comment="lines that ended so"),
    Column("errors", Text, nullable=False, comment="JSON list: what is wrong with the input"),
    Column("output_id", Text, nullable=False, comment="upload of the answers; empty: none"),
    Column("error_id", Text, nullable=False, comment="upload of what failed; empty: none"),
    Column("keep_s", BigInteger, nullable=False, comment="its files are kept so long"),
    Column("created_at", BigInteger, nullable=False, comment="database time"),
    Column("expires_at", BigInteger, nullable=False, comment="no line is sent after it"),
    Column("started_at", BigInteger, comment="when its input was found good"),
    Column("cancel_at", BigInteger, comment="when cancelling was asked; NULL: not"),
    Column("finishing_at", BigInteger, comment="when its last line had ended"),
    Column("ended_at", BigInteger, comment="when its files were there"),
    Column("deleted_at", BigInteger, comment="when its client deleted it"),
    Column(
        "model", Text, nullable=False, server_default="", comment="of its answers; empty: several"
    ),
    Column(
        "usage", Text, nullable=False, server_default="{}", comment="JSON: what its answers used"
    ),
    Index("ix_batch_due", "next_at", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_batch_listed", "account_id", "created_at", "id"),
    Index("ix_batch_open", "account_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

batch_line = Table(
    "batch_line",
    metadata,
    Column("batch_id", Text, ForeignKey("batch.id"), primary_key=True, comment="whose"),
    Column("no", Integer, primary_key=True, autoincrement=False, comment="in the input, from 1"),
    Column("custom_id", Text, nullable=False, comment="the client's name for it"),
    Column("place", BigInteger, nullable=False, comment="its first byte in the input"),
    Column("bytes", BigInteger, nullable=False, comment="its size there"),
    Column("state", Text, nullable=False, comment="services.core.batches.LineState"),
    Column("try_no", Integer, nullable=False, comment="of the present or last try; 0: none"),
    Column(
        "taken_by", Text, nullable=False, comment="incarnation that admits the try; empty: none"
    ),
    Column("status", Integer, nullable=False, comment="HTTP, of its answer; 0: it has none"),
    Column(
        "answer", Text, nullable=False, comment="SHA-256 of the stored answer, hex; empty: none"
    ),
    Column("code", Text, nullable=False, comment="why there is no answer; empty: there is one"),
    Index("ix_batch_line_state", "batch_id", "state", "no"),
)
