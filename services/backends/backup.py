"""Copies a running installation's files as of one instant.

Every database is a SQLite file in WAL mode, so a read transaction pins its content without holding
anybody up, and may be copied at leisure. For the milliseconds in which the pins are set no grant
and no settlement can happen (the books' write lock), and the pins are set in the order in which
events flow backwards: books, log, outboxes. So the log holds all that the books have applied, and
what the log lacks is in an outbox; restored, the rest is shipped and booked as after a crash.
Artifacts are copied last: a file is there before the books name it, and never changes.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from schemas.config import Config
from services.backends import settings
from services.backends.clock import SystemClock
from services.backends.receipt_keys import FOLDER as RECEIPTS

VERSION: Final = 1
MANIFEST: Final = "manifest.json"
BOOKS: Final = "books.db"
LOG: Final = "log.db"
OUTBOX: Final = "outbox"
ARTIFACTS: Final = "artifacts"
FILES: Final = "files"
_RELAY: Final = "relay.db"
_UNFINISHED: Final = ".unfinished"
_FREEZE_S: Final = 10.0
_ROUNDS: Final = 20


class CannotBackUp(Exception):
    """Says what is in the way; nothing was changed, and what was copied is gone again."""


class Places(NamedTuple):
    """Where the files of an installation lie; None: not a file of this machine."""

    data_dir: Path
    books: Path | None
    log: Path | None
    outbox: Path
    analytics: Path | None
    artifacts: Path | None


def places(config: Config) -> Places:
    """The files of `config`."""
    url, dsn = config.database.url, config.clickhouse.dsn
    books = settings.under(config, url.removeprefix("sqlite:///"))
    log = settings.under(config, config.bus.path)
    return Places(
        data_dir=Path(config.data_dir),
        books=books if url.startswith("sqlite:") else None,
        log=log if config.bus.kind == "local" else None,
        outbox=settings.under(config, config.outbox.path),
        analytics=settings.under(config, dsn.removeprefix("chdb:///"))
        if dsn.startswith("chdb:")
        else None,
        artifacts=settings.under(config, config.artifacts.path)
        if config.artifacts.store == "folder"
        else None,
    )


def back_up(config: Config, folder: Path) -> dict[str, object]:
    """Writes a backup into `folder`, which is made or empty, and returns its manifest.

    Raises CannotBackUp."""
    source = places(config)
    _claim_empty(folder)
    with undone_unless_finished(folder):
        _copy(source, folder)
        (folder / _UNFINISHED).unlink()
        manifest = _manifest(source, folder)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return manifest


@contextlib.contextmanager
def undone_unless_finished(*made: Path) -> Iterator[None]:
    """Removes files and empties folders, which were not there or empty before, when what fills
    them fails or is interrupted: so that the same can be tried again."""
    try:
        yield
    except BaseException:
        for path in made:
            for each in path.iterdir() if path.is_dir() else [path]:
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each, ignore_errors=True)
                else:
                    each.unlink(missing_ok=True)
        raise


def _copy(source: Places, folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        pins = stack.enter_context(_pinned(source))
        for name, pinned in pins.items():
            _copy_pinned(pinned, folder / name)
    _make_locks(folder / OUTBOX)
    for name in ("secret.key", "admin.key", "demo.json"):
        _copy_file(source.data_dir / name, folder / FILES / name)
    for path in sorted((source.data_dir / RECEIPTS).glob("*.*")):
        if not path.name.startswith("."):
            _copy_file(path, folder / FILES / RECEIPTS / path.name)
    if source.artifacts is not None:
        _copy_artifacts(source.artifacts, folder / ARTIFACTS)


def _manifest(source: Places, folder: Path) -> dict[str, object]:
    return {
        "version": VERSION,
        "made_at": SystemClock().now_us(),
        "notes": _notes(source),
        "files": {
            str(path.relative_to(folder)): sha256_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _notes(source: Places) -> list[str]:
    notes = []
    if source.books is None:
        notes.append("the books are in a PostgreSQL server: back them up with its own tools")
    if source.log is None:
        notes.append("the log is in Kafka, which keeps it")
    if source.artifacts is None:
        notes.append("the artifacts are in a bucket, which keeps them")
    if source.analytics is None:
        notes.append("after a restore run `tollgate rebuild clickhouse`")
    else:
        notes.append("the analytics tables are filled from the log after a restore")
    return notes


@contextlib.contextmanager
def _pinned(source: Places) -> Iterator[dict[str, sqlite3.Connection]]:
    """Name in the backup -> a connection whose transaction sees the instant."""
    pins: dict[str, sqlite3.Connection] = {}
    with contextlib.ExitStack() as stack:

        def opened(name: str, path: Path) -> None:
            connection = _reader(path)
            if connection is not None:
                pins[name] = stack.enter_context(contextlib.closing(connection))

        for name, path in _databases(source):
            opened(name, path)
        # A file removed from now on stays readable through its open connection.
        _open_outbox(source, pins, opened)
        with _frozen(source.books):
            _open_outbox(source, pins, opened)
            for name in (f"{OUTBOX}/{_RELAY}", BOOKS, LOG):
                if name in pins:
                    _pin(pins[name])
            for _ in range(_ROUNDS):
                if not _open_outbox(source, pins, opened):
                    break
            for name, connection in pins.items():
                if name.startswith(f"{OUTBOX}/") and not name.endswith(f"/{_RELAY}"):
                    _pin(connection)
        _require_dense(pins)
        yield pins


def _require_dense(pins: dict[str, sqlite3.Connection]) -> None:
    """No outbox file came and went between two looks at the folder."""
    numbers: dict[str, list[int]] = {}
    for name in pins:
        incarnation, _, number = Path(name).stem.rpartition("-")
        if number.isdecimal():
            numbers.setdefault(incarnation, []).append(int(number))
    for incarnation, found in numbers.items():
        if max(found) - min(found) + 1 != len(found):
            raise CannotBackUp(f"{incarnation} writes faster than can be looked at: try again")


def _databases(source: Places) -> list[tuple[str, Path]]:
    wanted = [
        (BOOKS, source.books),
        (LOG, source.log),
        (f"{OUTBOX}/{_RELAY}", source.outbox / _RELAY),
    ]
    return [(name, path) for name, path in wanted if path is not None]


def _open_outbox(
    source: Places,
    pins: dict[str, sqlite3.Connection],
    opened: Callable[[str, Path], None],
) -> int:
    """Opens the outbox files that are not open yet; how many they were."""
    new = 0
    for path in sorted(source.outbox.glob("*-*.db")):
        name = f"{OUTBOX}/{path.name}"
        if name not in pins:
            opened(name, path)
            new += name in pins
    return new


def _reader(path: Path) -> sqlite3.Connection | None:
    """None when there is no such database."""
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0
        )
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as ex:
        if not path.exists():
            return None
        raise CannotBackUp(f"{path}: {ex}") from ex
    return connection


@contextlib.contextmanager
def _frozen(books: Path | None) -> Iterator[None]:
    if books is None:
        yield
        return
    if not books.exists():
        raise CannotBackUp(f"there is no {books}")
    writer = sqlite3.connect(books, isolation_level=None, timeout=_FREEZE_S)
    try:
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            writer.execute("ROLLBACK")
    except sqlite3.OperationalError as ex:
        raise CannotBackUp(f"{books}: {ex}") from ex
    finally:
        writer.close()


def _pin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _copy_pinned(pinned: sqlite3.Connection, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(fd)
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            pinned.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            verdict = copy.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as ex:  # a full disk, for example
        raise CannotBackUp(f"{path}: {ex}") from ex
    if verdict != "ok":
        raise CannotBackUp(f"{path.name}: {verdict}")


def _make_locks(outbox: Path) -> None:
    """Each incarnation's lock file, which its sealing asks for. Its `.sync` begins anew: what a
    copied outbox holds is durable, and the restored one's reaper publishes all of it."""
    outbox.mkdir(mode=0o700, exist_ok=True)
    for name in {path.name.rpartition("-")[0] for path in outbox.glob("*-*.db")}:
        (outbox / f"{name}.lock").touch(mode=0o600)


def _copy_file(path: Path, target: Path) -> None:
    if path.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _copy_artifacts(source: Path, target: Path) -> None:
    """Without what is still on its way in, and what is deleted meanwhile: its time is over."""
    for path in sorted(source.glob("[0-9a-f][0-9a-f]/*")):
        place = target / path.parent.name / path.name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path, place)


def sha256_of(path: Path) -> str:
    """Hex, of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _claim_empty(folder: Path) -> None:
    """Makes the folder, and a file in it that only one of two backups can make."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if any(folder.iterdir()):
            raise FileExistsError
        (folder / _UNFINISHED).touch(exist_ok=False)
    except FileExistsError as ex:
        raise CannotBackUp(f"{folder} is not empty") from ex
