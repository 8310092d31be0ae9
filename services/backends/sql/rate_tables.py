"""The tables of rates: what was counted by subject, and which worker keeps how many slots."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, Table, Text

from services.backends.sql.tables import metadata

rate = Table(
    "rate",
    metadata,
    Column("subject", Text, primary_key=True, comment="account, key or member; locked in order"),
    Column("requests", Text, nullable=False, comment="JSON {bucket: starts} of the last minute"),
    Column("tokens", Text, nullable=False, comment="JSON {bucket: tokens} of the last minute"),
    Column("recall_at", BigInteger, comment="when a request last waited for idle slots"),
)

rate_slot = Table(
    "rate_slot",
    metadata,
    Column("subject", Text, ForeignKey("rate.subject"), primary_key=True, comment="whose"),
    Column(
        "incarnation_id",
        Text,
        ForeignKey("incarnation.id"),
        primary_key=True,
        index=True,
        comment="the worker; its slots count while it is open",
    ),
    Column("slots", Integer, nullable=False, comment="of concurrency, in use or idle"),
    Column("round_no", BigInteger, nullable=False, comment="the worker's round that said so"),
)
