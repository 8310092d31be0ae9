"""The numbered DDL of `schemas/clickhouse`, applied in order, each file once and recorded.

A file is applied whole before it is recorded, and its statements can be run again, so a crash in
between or two processes at once do no harm. A released file is never edited: a change is a new one.
"""

import hashlib
import re
from importlib import resources
from typing import Final, NamedTuple

from services.backends.clickhouse.client import ClickHouse

_FILE_NAME: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_RECORD: Final = """
CREATE TABLE IF NOT EXISTS schema_versions
(
    version     UInt32,
    name        String,
    sha256      String,
    applied_at  DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree
ORDER BY version
"""


class SchemaMismatch(Exception):
    """The database has a version that this build does not know, or another text of a known one."""


class Ddl(NamedTuple):
    """One file: its number, name, and statements."""

    version: int
    name: str
    sha256: str
    statements: tuple[str, ...]


def ddl_files() -> list[Ddl]:
    """The files in order. Raises ValueError when a number is missing or doubled."""
    files = []
    for entry in resources.files("schemas").joinpath("clickhouse").iterdir():
        match = _FILE_NAME.match(entry.name)
        if match is not None:
            text = entry.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            files.append(Ddl(int(match[1]), entry.name, digest, _statements(text)))
    files.sort()
    if [f.version for f in files] != list(range(1, len(files) + 1)):
        raise ValueError(f"schemas/clickhouse is not numbered 1..n: {[f.name for f in files]}")
    return files


def migrate(clickhouse: ClickHouse) -> list[str]:
    """Applies what is missing and returns the names of the files applied now.

    Raises SchemaMismatch, ClickHouseUnavailable or QueryRefused."""
    clickhouse.command(_RECORD)
    found = clickhouse.select("SELECT version, name, sha256 FROM schema_versions FINAL")
    recorded = {int(version): (name, sha256) for version, name, sha256 in found.rows}
    files = ddl_files()
    unknown = sorted(set(recorded) - {f.version for f in files})
    if unknown:
        raise SchemaMismatch(f"the database is newer than this build: it has versions {unknown}")
    applied = []
    for file in files:
        if file.version in recorded:
            if recorded[file.version][1] != file.sha256:
                raise SchemaMismatch(f"{file.name} was applied with another text")
            continue
        for statement in file.statements:
            clickhouse.command(statement)
        clickhouse.insert(
            "schema_versions",
            ["version", "name", "sha256"],
            ["UInt32", "String", "String"],
            [[file.version], [file.name], [file.sha256]],
            token=f"schema:{file.version}",
        )
        applied.append(file.name)
    return applied


def _statements(text: str) -> tuple[str, ...]:
    """Split at a semicolon that ends a line; our files have none elsewhere."""
    bare = re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE)
    return tuple(s.strip() for s in re.split(r";[ \t]*(?:\n|$)", bare) if s.strip())
