"""Where an incarnation's outbox lies, and how one of its files is made."""

import os
import sqlite3
import zlib
from pathlib import Path
from typing import Final

_DDL: Final = (
    """CREATE TABLE IF NOT EXISTS event (
        seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, request_id TEXT NOT NULL,
        lease_id TEXT NOT NULL, lease_seq INTEGER NOT NULL, partition_key TEXT NOT NULL,
        body BLOB NOT NULL, crc32 INTEGER NOT NULL)""",
    # first_seq: NULL while the file is a spare. finished: no row will follow in this file.
    # ended: no row will follow in this incarnation.
    """CREATE TABLE IF NOT EXISTS meta (
        id INTEGER PRIMARY KEY CHECK (id = 1), incarnation TEXT NOT NULL, first_seq INTEGER,
        sealed INTEGER NOT NULL DEFAULT 0, finished INTEGER NOT NULL DEFAULT 0,
        ended INTEGER NOT NULL DEFAULT 0)""",
)


def lock_path(folder: Path, incarnation: str) -> Path:
    return folder / f"{incarnation}.lock"


def sync_path(folder: Path, incarnation: str) -> Path:
    return folder / f"{incarnation}.sync"


def ballast_path(folder: Path, incarnation: str) -> Path:
    return folder / f"{incarnation}.ballast"


def file_path(folder: Path, incarnation: str, number: int) -> Path:
    return folder / f"{incarnation}-{number:06d}.db"


def row_crc(body: bytes, partition_key: str) -> int:
    """What column crc32 holds."""
    return zlib.crc32(partition_key.encode(), zlib.crc32(body))


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(path: Path, incarnation: str) -> sqlite3.Connection:
    """A writing connection to an outbox file, made if it is not there; `synchronous` is FULL."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.1)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _DDL:
            connection.execute(statement)
        connection.execute(
            "INSERT OR IGNORE INTO meta (id, incarnation) VALUES (1, ?)", (incarnation,)
        )
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection
