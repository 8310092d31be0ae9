"""Puts a backup into an empty data folder."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from schemas.config import Config
from services.backends.backup import (
    ARTIFACTS,
    BOOKS,
    FILES,
    LOG,
    MANIFEST,
    OUTBOX,
    VERSION,
    Places,
    places,
    sha256_of,
    undone_unless_finished,
)


class CannotRestore(Exception):
    """The backup is damaged or the data folder in use: says which; nothing was changed."""


def restore(config: Config, folder: Path) -> dict[str, Any]:
    """Copies the backup in `folder` to where `config` says. Returns its manifest.

    The embedded analytics tables are filled from the log again: their sink starts at its
    beginning. Raises CannotRestore."""
    manifest = _checked(folder)
    target = places(config)
    secrets = _secrets(folder, target)
    _require_unused(target, secrets)
    _require_places(folder, target)
    made = (target.books, target.log, target.outbox, target.artifacts, *secrets)
    with undone_unless_finished(*filter(None, made)):
        _put_back(folder, target)
    return manifest


def _put_back(folder: Path, target: Places) -> None:
    for name, path in ((BOOKS, target.books), (LOG, target.log)):
        if path is not None and (folder / name).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, path)
            path.chmod(0o640)
    if target.books is not None and target.analytics is not None and target.books.exists():
        _refill_analytics(target.books)
    if target.artifacts is not None and (folder / ARTIFACTS).is_dir():
        shutil.copytree(folder / ARTIFACTS, target.artifacts, dirs_exist_ok=True)
    if (folder / OUTBOX).is_dir():
        shutil.copytree(folder / OUTBOX, target.outbox, dirs_exist_ok=True)
    if (folder / FILES).is_dir():
        shutil.copytree(folder / FILES, target.data_dir, dirs_exist_ok=True)


def _checked(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = dict(manifest["files"])
    except (OSError, ValueError, LookupError, TypeError) as ex:
        raise CannotRestore(f"{folder} holds no complete backup: {ex}") from ex
    if manifest.get("version") != VERSION:
        raise CannotRestore(f"a backup of version {manifest.get('version')}, not {VERSION}")
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            raise CannotRestore(f"{path} is not what was backed up")
    return dict(manifest)


def _secrets(folder: Path, target: Places) -> list[Path]:
    """Where those of the backup come. They are all that a host has of its own whose books, log
    and artifacts are in servers."""
    kept = folder / FILES
    return [target.data_dir / path.relative_to(kept) for path in kept.rglob("*") if path.is_file()]


def _require_unused(target: Places, secrets: list[Path]) -> None:
    found = [
        path
        for path in (target.books, target.log, target.analytics, *secrets)
        if path and path.exists()
    ]
    for folder in (target.outbox, target.artifacts):
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            found.append(folder)
    if found:
        raise CannotRestore(f"{found[0]} exists: restore into an empty data folder")


def _require_places(folder: Path, target: Places) -> None:
    kept = {BOOKS: target.books, LOG: target.log, ARTIFACTS: target.artifacts}
    for name, path in kept.items():
        if path is None and (folder / name).exists():
            raise CannotRestore(f"the backup has {name}, the configuration no place for it")


def _refill_analytics(books: Path) -> None:
    with contextlib.closing(sqlite3.connect(books, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM sink_plan")
        connection.execute("DELETE FROM sink_position")
        connection.execute("COMMIT")
