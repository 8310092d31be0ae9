"""Files that clients uploaded as inputs: what they are called; their bytes lie in the store."""

from typing import Final

import msgspec
from sqlalchemy import Connection, Engine, func, insert, select, tuple_, update

from services.backends.sql.engine import database_now_us, now_us, read, write
from services.backends.sql.job_tables import upload
from services.core.ids import ulid

JOB_INPUT: Final = "job_input"  # purpose of what came with a submission and is erased with its job
BATCH: Final = "batch"  # lines of JSON, to be sent one by one
BATCH_OUTPUT: Final = "batch_output"
MESSAGE_RESULTS: Final = "message_results"  # of a batch whose protocol knows no files
_HIDDEN: Final = (JOB_INPUT, MESSAGE_RESULTS)
JSONL: Final = "application/x-jsonl"


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `upload`."""

    id: str
    account_id: str
    name: str
    purpose: str
    mime: str
    bytes: int
    sha256: str
    duration_ms: int | None
    created_at: int
    expires_at: int
    deleted_at: int | None = None


def new_upload(
    account_id: str,
    name: str,
    purpose: str,
    mime: str,
    size: int,
    sha256: str,
    duration_ms: int | None,
    now: int,
    keep_s: int,
) -> Upload:
    """A row to insert, under an id of its own."""
    return Upload(
        id=f"file_{ulid()}",
        account_id=account_id,
        name=name,
        purpose=purpose,
        mime=mime,
        bytes=size,
        sha256=sha256,
        duration_ms=duration_ms,
        created_at=now,
        expires_at=now + keep_s * 1_000_000,
    )


class Uploads:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self,
        account_id: str,
        name: str,
        purpose: str,
        mime: str,
        size: int,
        sha256: str,
        duration_ms: int | None,
        keep_s: int,
    ) -> Upload:
        """A new file, kept `keep_s` seconds."""

        def add(connection: Connection) -> Upload:
            now = database_now_us(connection)
            made = new_upload(
                account_id, name, purpose, mime, size, sha256, duration_ms, now, keep_s
            )
            connection.execute(insert(upload).values(msgspec.structs.asdict(made)))
            return made

        return write(self._engine, add)

    def get(self, account_id: str, upload_id: str) -> Upload | None:
        """The account's file of that id; None when there is none, or not any more."""
        query = select(upload).where(
            upload.c.id == upload_id,
            upload.c.account_id == account_id,
            upload.c.deleted_at.is_(None),
            upload.c.expires_at > now_us(),
        )
        row = read(self._engine, lambda connection: connection.execute(query).one_or_none())
        return None if row is None else Upload(**row._mapping)

    def listed(
        self,
        account_id: str,
        limit: int,
        purpose: str = "",
        *,
        after: Upload | None = None,
        oldest_first: bool = False,
    ) -> list[Upload]:
        """Newest first unless told, of one purpose or of all, from behind `after` on; those that
        came with a submission and those that no route for files shows are not among them."""
        place = tuple_(upload.c.created_at, upload.c.id)
        columns = (upload.c.created_at, upload.c.id)
        query = select(upload).where(
            upload.c.account_id == account_id,
            upload.c.purpose.not_in(_HIDDEN),
            upload.c.deleted_at.is_(None),
            upload.c.expires_at > now_us(),
        )
        if purpose:
            query = query.where(upload.c.purpose == purpose)
        if after is not None:
            last = tuple_(after.created_at, after.id)
            query = query.where(place > last if oldest_first else place < last)
        order = columns if oldest_first else [each.desc() for each in columns]
        query = query.order_by(*order).limit(limit)
        return read(
            self._engine,
            lambda connection: [Upload(**row._mapping) for row in connection.execute(query)],
        )

    def kept_bytes(self, account_id: str) -> int:
        """What the account keeps of what `listed` shows."""
        query = select(func.coalesce(func.sum(upload.c.bytes), 0)).where(
            upload.c.account_id == account_id,
            upload.c.purpose.not_in(_HIDDEN),
            upload.c.deleted_at.is_(None),
            upload.c.expires_at > now_us(),
        )
        return int(read(self._engine, lambda connection: connection.execute(query).scalar_one()))

    def delete(self, account_id: str, upload_id: str) -> bool:
        """Lets it go; a sweep deletes the bytes. False: there was none."""
        statement = (
            update(upload)
            .where(
                upload.c.id == upload_id,
                upload.c.account_id == account_id,
                upload.c.expires_at > now_us(),
            )
            .values(expires_at=now_us())
        )
        return write(self._engine, lambda c: c.execute(statement).rowcount > 0)
