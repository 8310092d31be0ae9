"""docs/features.md: every row is there once, and every test that a row names exists."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "features.md").read_text()
WORKING, LATER = TEXT.split("## Later")
ALL = range(1, 126)
REQUIRED = {
    *range(1, 10), 17, *range(22, 30), *range(31, 36), *range(37, 49), 53, 60, 61,
    *range(76, 81), 100, 105, *range(120, 126),
    36, *range(50, 53), *range(56, 60), *range(62, 76), 112, 113,
}  # fmt: skip


def rows(text: str) -> list[tuple[int, str, str]]:
    found = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    return [(int(number), feature, last) for number, feature, last in found]


@functools.cache
def names_in(path: Path) -> set[str]:
    """The names of the test functions of a file, those of its classes too."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_stands_once():
    numbers = [number for number, _, _ in rows(WORKING) + rows(LATER)]
    assert sorted(numbers) == list(ALL)
    assert len(numbers) == TEXT.count("\n| ") - 4  # two headers and two rulers: no row is garbled


def test_what_must_work_is_not_put_off():
    assert {number for number, _, _ in rows(WORKING)} >= REQUIRED
    assert {last for _, _, last in rows(LATER)} == {"later"}


@pytest.mark.parametrize(("number", "feature", "proof"), rows(WORKING), ids=lambda v: str(v)[:24])
def test_the_tests_that_prove_a_row_exist(number, feature, proof):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
    assert named, f"row {number} ({feature}) has no proof"
    assert len(named) == proof.count("`") / 2
    for file, test in named:
        assert test in names_in(ROOT / file), f"row {number}: {file} has no {test}"
