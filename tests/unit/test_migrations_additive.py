"""Every migration but the first only adds: the programs of the revision before it run on
(docs/operate.md, "Migrate while it runs")."""

import ast
import re
from pathlib import Path

import pytest

from services.backends.sql import revision

FOLDER = Path(revision.__file__).parent / "migrations" / "versions"
FILES = sorted(FOLDER.glob("r[0-9]*.py"))[1:]
ADDS = {
    "add_column",
    "create_table",
    "create_index",
    "create_check_constraint",
    "create_foreign_key",
    "bulk_insert",
    "execute",
    "f",
    "get_bind",
}
TAKES = re.compile(r"\b(DROP|RENAME|TRUNCATE|DELETE|ALTER COLUMN|SET NOT NULL|SET DATA TYPE)\b")


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def named(call):
    """`op.add_column(...)` -> op, add_column."""
    target = call.func
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
        return target.value.id, target.attr
    return "", ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_takes_nothing_away(file):
    tree = ast.parse(file.read_text())
    used = {name for module, name in map(named, calls(tree)) if module == "op"}
    assert used <= ADDS, f"{file.name}: {used - ADDS}"
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    for value in texts:
        assert not (isinstance(value, str) and TAKES.search(value)), f"{file.name}: {value}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rows_of_older_programs_fit_its_columns(file):
    """A new column is NULL, or has a default of the database."""
    tree = ast.parse(file.read_text())
    for call in calls(tree):
        if named(call) != ("op", "add_column") or not isinstance(call.args[1], ast.Call):
            continue
        given = {word.arg: word.value for word in call.args[1].keywords}
        nullable = given.get("nullable")
        never_null = isinstance(nullable, ast.Constant) and nullable.value is False
        assert not never_null or "server_default" in given, f"{file.name}: {ast.unparse(call)}"


def test_the_revisions_are_one_line():
    names = revision.known()
    assert names == [f"{number:04d}" for number in range(1, len(names) + 1)]
    for before, name in zip(["", *names], names, strict=False):
        text = (FOLDER / f"r{name}.py").read_text()
        assert f'revision = "{name}"' in text
        assert ("down_revision = None" if not before else f'down_revision = "{before}"') in text
