"""docs/proof.md: every numbered fault is there once, and every test that it names exists."""

import re

import pytest

from tests.chaos.actions import crash_points
from tests.unit.test_features_doc import ROOT, names_in

TEXT = (ROOT / "docs" / "proof.md").read_text()
FAULTS = [
    (int(number), proof)
    for number, proof in re.findall(r"^\| (\d+) \| .* \| ([^|]+) \|$", TEXT, re.MULTILINE)
]
JOBS = [
    (int(number), proof)
    for number, proof in re.findall(r"^\| J(\d+) \| .* \| ([^|]+) \|$", TEXT, re.MULTILINE)
]


def test_every_fault_stands_once():
    assert [number for number, _ in FAULTS] == list(range(1, 42))
    assert [number for number, _ in JOBS] == list(range(1, 35))


@pytest.mark.parametrize(("number", "proof"), FAULTS + JOBS, ids=lambda value: str(value)[:3])
def test_the_tests_that_show_a_fault_exist(number, proof):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
    assert named, f"fault {number} has no proof"
    assert len(named) == proof.count("`") / 2
    for file, test in named:
        assert test in names_in(ROOT / file), f"fault {number}: {file} has no {test}"


def test_the_files_that_the_page_names_exist():
    for file in re.findall(r"`((?:tests|scripts)/[\w/]+(?:\.py)?)`", TEXT):
        assert (ROOT / file).exists(), file


def test_the_chaos_finds_the_crash_points():
    assert {"edge.mid_stream", "relay.after_send", "ledger.committed"} <= set(crash_points())
